#pragma once

#include "kernels/cuda/pack_bucket.h"

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace zerosched::kernels::cuda {

/// The gradient of one slot of a bucket. Plain data.
struct PackSource {
  const void* gradient;  ///< device memory, flat, aligned for its dtype; null: there is none
  int64_t begin;         ///< in the bucket
  int64_t numel;
  c10::ScalarType dtype;  ///< the bucket's, or another of those that kernels::copy_gradient converts to it
};

}  // namespace zerosched::kernels::cuda
