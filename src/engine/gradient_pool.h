#pragma once

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
  /// `bucket_bytes`: of each bucket's gradients on the wire. Collective (allocates from the communicator).
  GradientPool(std::vector<int64_t> bucket_bytes, int buffers, Communicator& communicator, at::Device device);

  /// Index of a free buffer of at least so many bytes, now taken; -1 if there is none.
  int take(int64_t bytes);
  void give_back(int index);
  /// The first elements of a buffer.
  at::Tensor view(int index, int64_t numel, c10::ScalarType dtype) const;

 private:
  std::vector<at::Tensor> buffers_;  ///< bytes, from largest to smallest
  std::vector<bool> taken_;
};

}  // namespace zerosched::detail
