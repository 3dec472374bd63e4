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

/// One step of `rule` on a range.
void update(Rule rule, const UpdateRange& range, const StepScalars& scalars);

/// out = lerp(x, z, weight), rounded to param_dtype. weight 0 gives x, 1 gives z, exactly.
void interpolate(
    c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight, int64_t numel);

/// Sum of squares in double, in the order of summation.h, which depends on `numel` alone.
double sum_of_squares(c10::ScalarType dtype, const void* data, int64_t numel);

}  // namespace zerosched::kernels
