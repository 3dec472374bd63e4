#pragma once

#include <cstdint>

namespace zerosched::kernels::cuda {

/// A run of elements of the state of this rank's shards: where their gradients and their parameters lie. Plain data:
/// tables of these are read from device memory, in the order of `begin`, no two overlapping. Of what a launch reads
/// the state is one flat range, whatever the buckets are.
struct SpanOnDevice {
  /// Device memory, aligned for its dtype; on 16 bytes it is read fastest. Only clamp_gradient writes it.
  const void* values;
  int64_t begin;  ///< first element, counted from the flat state's; a multiple of 8
  int64_t numel;
  /// One element of the gradient's dtype: the span is left alone where it is 0. null: used.
  const void* used;
  void* y = nullptr;      ///< the parameters, written by update alone; on 16 bytes fastest
  int64_t parameter = 0;  ///< whose they are: an index of what squares_by_parameter adds to
};

/// An upper bound of the numbers of tiles in use (tiles.cuh), for spans that lie in this many elements.
inline int64_t tile_count(int64_t range_numel, int64_t span_count, int64_t tile_numel) {
  return range_numel / tile_numel + span_count;
}

}  // namespace zerosched::kernels::cuda
