#pragma once

#include "kernels/clipping.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/math.h"
#include "kernels/step_scalars.h"

namespace zerosched::kernels::cuda {

/// One thread. max_norm < 0: no clipping.
__global__ void gradient_norm_kernel(const double* sum, const StepScalars* scalars, double max_norm,
    bool skip_non_finite, bool float64_state, GradientNorm* out) {
  out->norm = square_root(*sum) * scalars->grad_scale;
  out->clip_factor = max_norm < 0 ? 1 : clip_factor(out->norm, max_norm);
  const bool usable = can_be_used(out->norm, scalars->grad_scale, float64_state);
  out->found_inf = skip_non_finite && !usable ? 1 : 0;
}

}  // namespace zerosched::kernels::cuda
