#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gradient_span.h"
#include "kernels/element_types.h"

#include <cstdint>

// Spans cut into tiles, so that one launch is balanced for one huge span and for thousands of small ones.
// Span s owns the tile numbers from begin / kTileNumel + s on: as many as it needs or one more, and no two
// spans the same, so a tile finds its span without a table of its own.
namespace zerosched::kernels::cuda {

template <int64_t kTileNumel>
__device__ __forceinline__ int64_t first_tile(const GradientSpan* spans, int64_t span) {
  return spans[span].begin / kTileNumel + span;
}

struct Tile {
  int64_t span;
  int64_t begin;  ///< counted from the span's first element
  int64_t numel;  ///< 0: a number that no span needs
};

template <int64_t kTileNumel>
__device__ __forceinline__ Tile find_tile(const GradientSpan* spans, int64_t span_count, int64_t number) {
  int64_t span = 0;
  for (int64_t end = span_count; end - span > 1;) {
    const int64_t middle = span + (end - span) / 2;
    if (first_tile<kTileNumel>(spans, middle) <= number) {
      span = middle;
    } else {
      end = middle;
    }
  }
  Tile tile{span, (number - first_tile<kTileNumel>(spans, span)) * kTileNumel, 0};
  if (tile.begin >= 0 && tile.begin < spans[span].numel) {
    const int64_t left = spans[span].numel - tile.begin;
    tile.numel = left < kTileNumel ? left : kTileNumel;
  }
  return tile;
}

/// Whether any rank used the parameter.
template <typename Grad>
__device__ __forceinline__ bool is_used(const GradientSpan& span) {
  return span.used == nullptr || load(*in_global_memory<Grad>(span.used)) != 0;
}

}  // namespace zerosched::kernels::cuda
