#define S4_ISA avx512
#define S4_BYTES 64

#include "table.h"
