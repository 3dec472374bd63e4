#define ZEROSCHED_VARIANT kAvx2
#define ZEROSCHED_VARIANT_NAME "avx2"
#include "kernels/cpu/variant_definition.h"
