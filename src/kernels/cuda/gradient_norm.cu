#include "kernels/cuda/gradient_norm.cuh"

namespace zerosched::kernels::cuda {

void launch_gradient_norm(const double* sum, const StepScalars* scalars, double max_norm,
    bool skip_non_finite, bool float64_state, GradientNorm* out, Stream stream) {
  ZEROSCHED_LAUNCH(
      gradient_norm_kernel, 1, 1, stream, sum, scalars, max_norm, skip_non_finite, float64_state, out);
}

}  // namespace zerosched::kernels::cuda
