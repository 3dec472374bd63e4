#include "kernels/cuda/interpolate.cuh"

namespace zerosched::kernels::cuda {

template void launch_interpolate<float>(void*, const void*, const void*, double, int64_t, int64_t, Stream);
template void launch_interpolate<double>(void*, const void*, const void*, double, int64_t, int64_t, Stream);
template void launch_interpolate<BFloat16>(void*, const void*, const void*, double, int64_t, int64_t, Stream);
template void launch_interpolate<Float16>(void*, const void*, const void*, double, int64_t, int64_t, Stream);

}  // namespace zerosched::kernels::cuda
