#pragma once

#include "layout/layout.h"

#include <zerosched/communicator.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace zerosched::detail {

/// The flat buffers that gradients are collected in while they are in flight.
///
/// There are as many as asked for, and the i-th is as large as the i-th largest bucket: one huge embedding
/// does not make every buffer huge. A bucket takes the smallest free buffer that holds it; the largest holds
/// any, so a bucket that waits will be served.
class GradientPool {
 public:
  /// Collective (allocates from the communicator).
  GradientPool(const Layout& layout, int buffers, Communicator& communicator, at::Device device);

  /// Index of a free buffer for this bucket, now taken; -1 if there is none.
  int take(const Bucket& bucket);
  void give_back(int index);
  /// The buffer as world_size slices of gradient_slice_numel() elements, in the bucket's reduce_dtype.
  at::Tensor view(int index, const Bucket& bucket) const;

 private:
  int64_t world_size_;
  std::vector<at::Tensor> buffers_;  ///< bytes, from largest to smallest
  std::vector<bool> taken_;
};

/// Bytes of a bucket's gradients on the wire, flags included.
int64_t gradient_bytes(const Bucket& bucket, int64_t world_size);

}  // namespace zerosched::detail
