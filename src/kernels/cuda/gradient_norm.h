#pragma once

#include <cstdint>

namespace zerosched::kernels::cuda {

/// What only the device knows of a step's gradients. Plain data, in device memory.
struct GradientNorm {
  double norm;         ///< L2, of the averaged gradient
  double clip_factor;  ///< what the gradient is multiplied with; 1 without clipping
  int64_t found_inf;   ///< not 0: an element is not finite, and the step changes nothing
};

}  // namespace zerosched::kernels::cuda
