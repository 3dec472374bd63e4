#define ZEROSCHED_VARIANT kBaseline
#define ZEROSCHED_VARIANT_NAME "baseline"
#include "kernels/cpu/variant_definition.h"
