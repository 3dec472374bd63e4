#pragma once

#include "kernels/update.h"

#include <c10/core/ScalarType.h>

#include <cstdint>

// What the rest of the library sees of the kernels: flat ranges of host memory, threaded over
// at::parallel_for. The result of every element depends on that element alone, in the same arithmetic on
// every instruction set, so neither the number of threads nor the place in a shard changes a bit.
namespace zerosched::kernels {

/// True if parameters of this dtype can be trained: float32, float64, bfloat16, float16.
bool is_supported(c10::ScalarType param_dtype);

/// The dtype of the state of such parameters: float64 for float64, else float32.
c10::ScalarType state_dtype(c10::ScalarType param_dtype);

/// One step of `rule` on a range. Returns whether every element of the first and of the last state tensor is
/// finite after it: a gradient that is not shows in the first, but where bounds took it back into the box, and one
/// whose square overflows in the last.
bool update(Rule rule, const UpdateRange& range, const StepScalars& scalars);

/// out = lerp(x, z, weight), rounded to param_dtype. weight 0 gives x, 1 gives z, exactly.
void interpolate(
    c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight, int64_t numel);

/// Sum of squares in double, in the order of summation.h, which depends on `numel` alone.
double sum_of_squares(c10::ScalarType dtype, const void* data, int64_t numel);

/// Sum of |g|^p in double, in the same order. 0 < p < infinity. Bits do not depend on the processor for p = 1, and
/// for p = 2 are those of sum_of_squares; other powers are those of std::pow, and slow.
double sum_of_powers(c10::ScalarType dtype, const void* data, int64_t numel, double p);

/// `weight` times <g, z - x>, in double, in the same order. z, x: of the dtype of the state of grad_dtype parameters.
double inner_product(
    c10::ScalarType grad_dtype, const void* g, const void* z, const void* x, int64_t numel, double weight);

/// The largest |g|; NaN if an element is NaN, 0 of nothing.
double max_abs(c10::ScalarType dtype, const void* data, int64_t numel);

/// to = from * weight. float32, float64, bfloat16 and float16, of which float32 also from and to the 16-bit types.
/// Weight 1 converts, and copies bit for bit where the dtypes are the same; any other is rounded to float32,
/// float64 for float64, multiplied in that, and the product rounded to to_dtype. Of conversions to 16 bits NaN is
/// 0x7fff. Returns whether all elements that were written are finite. `to` and `from` do not overlap.
bool copy_gradient(c10::ScalarType to_dtype, void* to, c10::ScalarType from_dtype, const void* from,
    int64_t numel, double weight);

/// Clamps to [-limit, limit], limit rounded to dtype towards zero. limit >= 0. NaN stays.
void clamp_gradient(c10::ScalarType dtype, void* data, int64_t numel, double limit);

}  // namespace zerosched::kernels
