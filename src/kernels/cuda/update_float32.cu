#include "kernels/cuda/update.cuh"

namespace zerosched::kernels::cuda {

template void launch_update<float, float>(Rule, const StepScalars&, const ShardUpdate&, int64_t, Stream);
template void launch_update<float, BFloat16>(Rule, const StepScalars&, const ShardUpdate&, int64_t, Stream);

}  // namespace zerosched::kernels::cuda
