#define ZEROSCHED_VARIANT kAvx512
#define ZEROSCHED_VARIANT_NAME "avx512"
#include "kernels/cpu/variant_definition.h"
