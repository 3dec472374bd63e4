#pragma once

#include "kernels/math.h"

// What is made of the norm of a step's gradients, on hosts and devices alike.
namespace zerosched::kernels {

/// As torch::nn::utils::clip_grad_norm_: max_norm / (norm + 1e-6), at most 1, NaN if the norm is.
ZEROSCHED_ELEMENT double clip_factor(double norm, double max_norm) {
  const double factor = max_norm / (norm + 1e-6);
  return factor >= 1 ? 1 : factor;
}

/// Whether a step can use gradients of this norm and scale: both are finite in the type that the update reckons
/// in, which is the state's. In double a norm is finite that float32 cannot hold.
ZEROSCHED_ELEMENT bool can_be_used(double norm, double grad_scale, bool float64_state) {
  if (float64_state) return zero_if_finite(zero_if_finite(0.0, norm), grad_scale) == 0;
  return zero_if_finite(zero_if_finite(0.0F, static_cast<float>(norm)), static_cast<float>(grad_scale)) == 0;
}

}  // namespace zerosched::kernels
