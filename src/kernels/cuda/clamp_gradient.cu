#include "kernels/cuda/clamp_gradient.cuh"

namespace zerosched::kernels::cuda {

template void launch_clamp_gradient<float>(const SpanOnDevice*, int64_t, int64_t, double, int64_t, Stream);
template void launch_clamp_gradient<double>(const SpanOnDevice*, int64_t, int64_t, double, int64_t, Stream);
template void launch_clamp_gradient<BFloat16>(const SpanOnDevice*, int64_t, int64_t, double, int64_t, Stream);
template void launch_clamp_gradient<Float16>(const SpanOnDevice*, int64_t, int64_t, double, int64_t, Stream);

}  // namespace zerosched::kernels::cuda
