#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/element_types.h"

#include <algorithm>
#include <cstdint>

namespace zerosched::kernels::cuda {

inline constexpr int kInterpolateThreads = 256;
inline constexpr int64_t kInterpolateBlocksPerMultiprocessor = 8;

/// out = lerp(x, z), as kernels::interpolate. out, x and z are aligned to 16 bytes.
template <typename Param, typename Real>
__global__ void __launch_bounds__(kInterpolateThreads)
    interpolate_kernel(Param* out, const Real* x, const Real* z, Lerp<Real> how, int64_t numel) {
  constexpr int kCount = 16 / sizeof(Param);
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kInterpolateThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kInterpolateThreads;
  const int64_t in_packs = numel / kCount * kCount;
#pragma unroll 1
  for (int64_t i = thread * kCount; i < in_packs; i += threads * kCount) {
    const Pack<Real, kCount> from = load_pack<kCount>(x + i);
    const Pack<Real, kCount> to = load_pack<kCount>(z + i);
    Pack<Param, kCount> between;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      store(between.values[j], interpolate_element(from.values[j], to.values[j], how));
    }
    store_pack(out + i, between);
  }
  const int64_t last = in_packs + thread;
  if (last < numel) store(out[last], interpolate_element(x[last], z[last], how));
}

template <typename Param>
void launch_interpolate(void* out, const void* x, const void* z, double weight, int64_t numel,
    int64_t multiprocessors, Stream stream) {
  using Real = typename StateOf<Param>::type;
  constexpr int64_t kBlockNumel = kInterpolateThreads * (16 / sizeof(Param));
  const int64_t blocks = std::min(
      (numel + kBlockNumel - 1) / kBlockNumel, multiprocessors * kInterpolateBlocksPerMultiprocessor);
  ZEROSCHED_LAUNCH((interpolate_kernel<Param, Real>), blocks, kInterpolateThreads, stream,
      static_cast<Param*>(out), static_cast<const Real*>(x), static_cast<const Real*>(z), Lerp<Real>(weight),
      numel);
}

}  // namespace zerosched::kernels::cuda
