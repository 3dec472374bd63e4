// Included once by each variant_*.cpp, which is compiled for its instruction set and defines
// ZEROSCHED_VARIANT. Everything here, and in *_loops.h, is internal to that file, and loops are plain, for the
// compiler to vectorise: an inline function of the standard library, shared between files, could end up being
// the copy that needs AVX-512.
#ifndef ZEROSCHED_VARIANT
#error "define ZEROSCHED_VARIANT before including this"
#endif

#include "kernels/cpu/gradient_loops.h"
#include "kernels/cpu/inner_product_loops.h"
#include "kernels/cpu/interpolate_loops.h"
#include "kernels/cpu/sum_loops.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/cpu/variant.h"

namespace zerosched::kernels {

extern const Variant ZEROSCHED_VARIANT;
// NOLINTNEXTLINE(misc-definitions-in-headers): it is a part of the one file that includes it
const Variant ZEROSCHED_VARIANT = {ZEROSCHED_VARIANT_NAME, update_by_rule, interpolate_range,
    sum_squares_of_tile, sum_powers_of_tile, inner_product_of_tile, copy_gradient_range,
    clamp_gradient_range};

}  // namespace zerosched::kernels
