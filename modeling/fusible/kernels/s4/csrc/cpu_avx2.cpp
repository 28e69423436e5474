#define S4_ISA avx2
#define S4_BYTES 32

#include "table.h"
