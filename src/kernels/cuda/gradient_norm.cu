#include "kernels/cuda/gradient_norm.cuh"
#include "kernels/cuda/sum_of_squares.cuh"

namespace zerosched::kernels::cuda {

template void launch_sum_of_squares<float>(const GradientSpan*, int64_t, int64_t, double*, double*, Stream);
template void launch_sum_of_squares<double>(const GradientSpan*, int64_t, int64_t, double*, double*, Stream);
template void launch_sum_of_squares<BFloat16>(
    const GradientSpan*, int64_t, int64_t, double*, double*, Stream);
template void launch_sum_of_squares<Float16>(const GradientSpan*, int64_t, int64_t, double*, double*, Stream);

void launch_gradient_norm(const double* sum, const StepScalars* scalars, double max_norm,
    bool skip_non_finite, GradientNorm* out, Stream stream) {
  ZEROSCHED_LAUNCH(gradient_norm_kernel, 1, 1, stream, sum, scalars, max_norm, skip_non_finite, out);
}

}  // namespace zerosched::kernels::cuda
