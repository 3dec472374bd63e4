#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace zerosched::kernels::cuda {

/// The gradient of one slot of a bucket. Plain data.
struct PackSource {
  const void* gradient;  ///< device memory, flat; null: there is none
  int64_t begin;         ///< in the bucket
  int64_t numel;
  c10::ScalarType dtype;  ///< the bucket's, or another of float32, bfloat16 and float16
};

/// What a bucket's flat buffer is made of (layout/layout.h). Plain data; pointers are to device memory.
struct PackBucket {
  void* buffer;  ///< world_size slices of slice_numel elements
  int64_t world_size;
  int64_t shard_numel;  ///< gradients of a slice
  int64_t flag_numel;   ///< behind them
  int64_t slice_numel;
  const void* report;  ///< what every slice ends with: slice_numel - shard_numel - flag_numel elements
  double weight;       ///< gradients are multiplied with it, as by kernels::copy_gradient
};

}  // namespace zerosched::kernels::cuda
