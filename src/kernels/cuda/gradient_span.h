#pragma once

#include <cstdint>

namespace zerosched::kernels::cuda {

/// Where the gradient of a run of elements of a shard lies. Plain data: tables of these are read from device
/// memory, in the order of `begin`, no two overlapping.
struct GradientSpan {
  /// Device memory, aligned for its dtype; on 16 bytes it is read fastest. Only clamp_gradient writes it.
  const void* values;
  int64_t begin;  ///< first element, counted from the shard's; a multiple of 8
  int64_t numel;
  const void*
      used;  ///< one element of the gradient's dtype: the span is left alone where it is 0. null: used
};

/// An upper bound of the numbers of tiles in use (tiles.cuh), for a shard of this many elements.
inline int64_t tile_count(int64_t shard_numel, int64_t span_count, int64_t tile_numel) {
  return shard_numel / tile_numel + span_count;
}

}  // namespace zerosched::kernels::cuda
