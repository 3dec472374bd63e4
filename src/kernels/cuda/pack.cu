#include "kernels/cuda/pack.cuh"

namespace zerosched::kernels::cuda {

template void launch_pack<float>(const PackBucket&, const PackSlot*, int64_t, int64_t, Stream);
template void launch_pack<double>(const PackBucket&, const PackSlot*, int64_t, int64_t, Stream);
template void launch_pack<BFloat16>(const PackBucket&, const PackSlot*, int64_t, int64_t, Stream);
template void launch_pack<Float16>(const PackBucket&, const PackSlot*, int64_t, int64_t, Stream);

}  // namespace zerosched::kernels::cuda
