#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/math.h"
#include "kernels/step_scalars.h"

#include <cmath>

namespace zerosched::kernels::cuda {

/// One thread. max_norm < 0: no clipping.
__global__ void gradient_norm_kernel(
    const double* sum, const StepScalars* scalars, double max_norm, bool skip_non_finite, GradientNorm* out) {
  out->norm = square_root(*sum) * scalars->grad_scale;
  // As torch::nn::utils::clip_grad_norm_: max_norm / (norm + 1e-6), at most 1, NaN if the norm is.
  const double factor = max_norm / (out->norm + 1e-6);
  out->clip_factor = max_norm < 0 || factor >= 1 ? 1 : factor;
  out->found_inf = skip_non_finite && !std::isfinite(out->norm) ? 1 : 0;
}

}  // namespace zerosched::kernels::cuda
