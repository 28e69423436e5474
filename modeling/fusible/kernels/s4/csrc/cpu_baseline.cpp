#define S4_ISA baseline
#define S4_BYTES 16

#include "table.h"
