#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/tiles.cuh"
#include "kernels/magnitude.h"

#include <algorithm>
#include <cstdint>

namespace zerosched::kernels::cuda {

inline constexpr int kClampThreads = 256;
inline constexpr int64_t kClampBlocksPerMultiprocessor = 8;

/// Clamps the elements of all used spans, in place. Blocks take tiles in turn.
template <typename Grad>
__global__ void __launch_bounds__(kClampThreads) clamp_kernel(const SpanOnDevice* table, int64_t span_count,
    const Tiling tiling, typename Magnitude<Grad>::Bits limit) {
  constexpr int kCount = 16 / sizeof(Grad);
  const TiledSpans spans(table, span_count, tiling.tile_log2);
  for (int64_t number = blockIdx.x; number < tiling.tile_count; number += gridDim.x) {
    const Tile tile = spans.tile(number);
    if (tile.numel == 0) continue;
    const SpanOnDevice span = spans[tile.span];
    if (!is_used<Grad>(span)) continue;
    Grad* gradient = const_cast<Grad*>(in_global_memory<Grad>(span.values)) + tile.begin;
    const int64_t in_packs = is_pack_aligned(gradient) ? tile.numel / kCount * kCount : 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x * kCount; i < in_packs; i += kClampThreads * kCount) {
      Pack<Grad, kCount> pack = load_pack<kCount>(gradient + i);
#pragma unroll
      for (int j = 0; j < kCount; ++j) pack.values[j] = clamp_magnitude(pack.values[j], limit);
      store_pack(gradient + i, pack);
    }
#pragma unroll 1
    for (int64_t i = in_packs + threadIdx.x; i < tile.numel; i += kClampThreads) {
      gradient[i] = clamp_magnitude(gradient[i], limit);
    }
  }
}

template <typename Grad>
void launch_clamp_gradient(const SpanOnDevice* spans, int64_t span_count, int64_t range_numel, double limit,
    int64_t multiprocessors, Stream stream) {
  const Tiling tiling(range_numel, span_count, kClampThreads, sizeof(Grad), multiprocessors);
  const int64_t blocks = std::min(tiling.tile_count, multiprocessors * kClampBlocksPerMultiprocessor);
  ZEROSCHED_LAUNCH(clamp_kernel<Grad>, blocks, kClampThreads, stream, spans, span_count, tiling,
      magnitude_limit<Grad>(limit));
}

}  // namespace zerosched::kernels::cuda
