#pragma once

#include "kernels/step_scalars.h"

#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>

namespace zerosched::kernels {

/// One flat range of a shard. All pointers point at element 0 of the range, no two ranges overlap.
/// state: float32 (float64 where param_dtype is float64). y: param_dtype. g: grad_dtype, which is param_dtype or
/// the type of the state.
struct UpdateRange {
  c10::ScalarType param_dtype;
  c10::ScalarType grad_dtype;
  void* y;  ///< written only; y before the step follows from the state
  const void* g;
  std::array<void*, kMaxStateTensors> state;  ///< in the rule's order; the others are null
  int64_t numel;
};

}  // namespace zerosched::kernels
