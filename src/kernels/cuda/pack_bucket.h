#pragma once

#include <cstdint>

namespace zerosched::kernels::cuda {

/// What a bucket's flat buffer is made of (layout/layout.h). Plain data; pointers are to device memory.
struct PackBucket {
  void* buffer;  ///< world_size slices of slice_numel elements; aligned to 16 bytes, as every slice
  int64_t world_size;
  int64_t shard_numel;  ///< gradients of a slice
  int64_t flag_numel;   ///< behind them
  int64_t slice_numel;
  const void* report;  ///< what every slice ends with: slice_numel - shard_numel - flag_numel elements
  double weight;       ///< gradients are multiplied with it, as by kernels::copy_gradient
};

}  // namespace zerosched::kernels::cuda
