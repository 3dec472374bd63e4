#include "kernels/cuda/update.cuh"

namespace zerosched::kernels::cuda {

template void launch_update<Float16, Float16>(Rule, const StepScalars&, const ShardUpdate&, int64_t, Stream);
template void launch_update<Float16, float>(Rule, const StepScalars&, const ShardUpdate&, int64_t, Stream);

}  // namespace zerosched::kernels::cuda
