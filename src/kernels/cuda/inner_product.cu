#include "kernels/cuda/inner_product.cuh"

namespace zerosched::kernels::cuda {

template void launch_inner_product<float>(
    double, const void*, const void*, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_inner_product<double>(
    double, const void*, const void*, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_inner_product<BFloat16>(
    double, const void*, const void*, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_inner_product<Float16>(
    double, const void*, const void*, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);

}  // namespace zerosched::kernels::cuda
