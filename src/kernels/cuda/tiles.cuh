#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/span_on_device.h"
#include "kernels/element_types.h"

#include <cstdint>

// Spans cut into tiles, so that one launch is balanced for one huge span and for thousands of small ones.
// Counted from the launch's first span, span s owns the tile numbers from begin / tile numel + s on: as many as it
// needs or one more, and no two spans the same, so a tile finds its span without a table of its own.
namespace zerosched::kernels::cuda {

struct Tile {
  int64_t span;
  int64_t begin;  ///< counted from the span's first element
  int64_t numel;  ///< 0: a number that no span needs
};

/// A launch's spans, in tiles of 1 << tile_log2 elements.
class TiledSpans {
 public:
  __device__ __forceinline__ TiledSpans(const SpanOnDevice* spans, int64_t count, int tile_log2)
      : spans_(spans), count_(count), origin_(spans[0].begin), tile_log2_(tile_log2) {}

  __device__ __forceinline__ const SpanOnDevice& operator[](int64_t span) const { return spans_[span]; }
  __device__ __forceinline__ int64_t first_tile(int64_t span) const {
    return ((spans_[span].begin - origin_) >> tile_log2_) + span;
  }
  __device__ __forceinline__ Tile tile(int64_t number) const {
    int64_t span = 0;
    for (int64_t end = count_; end - span > 1;) {
      const int64_t middle = span + (end - span) / 2;
      if (first_tile(middle) <= number) {
        span = middle;
      } else {
        end = middle;
      }
    }
    Tile tile{span, (number - first_tile(span)) << tile_log2_, 0};
    const int64_t left = spans_[span].numel - tile.begin;
    const int64_t most = int64_t{1} << tile_log2_;
    if (left > 0) tile.numel = left < most ? left : most;
    return tile;
  }

 private:
  const SpanOnDevice* spans_;
  int64_t count_;
  int64_t origin_;
  int tile_log2_;
};

/// How a launch is cut whose blocks have `threads` threads: into tiles of 4096 elements, or where there are too few of
/// those for all multiprocessors, of as many as its threads access at once.
struct Tiling {
  int tile_log2;
  int64_t tile_count;

  Tiling(int64_t range_numel, int64_t span_count, int threads, size_t element_bytes, int64_t multiprocessors)
      : tile_log2(12), tile_count(cuda::tile_count(range_numel, span_count, int64_t{1} << tile_log2)) {
    if (tile_count >= 2 * multiprocessors) return;
    tile_log2 = log2_of(threads * 16 / static_cast<int64_t>(element_bytes));
    tile_count = cuda::tile_count(range_numel, span_count, int64_t{1} << tile_log2);
  }
};

/// Whether any rank used the parameter.
template <typename Grad>
__device__ __forceinline__ bool is_used(const SpanOnDevice& span) {
  return span.used == nullptr || load(*in_global_memory<Grad>(span.used)) != 0;
}

}  // namespace zerosched::kernels::cuda
