#pragma once

#include <zerosched/communicator.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace zerosched::detail {

/// What a bucket has of a pool.
struct BufferUse {
  int buffer = 0;
  int64_t user_before = -1;  ///< the last position before it with the same buffer; -1: none
};

/// Which buffer each bucket takes, given the bytes of both: of those that hold it the one whose last user is longest
/// ago, so bucket k takes buffer k mod n where all are of one size. Depends on the order alone, hence is the same on
/// every rank, whatever a rank has seen finished. `order` lists buckets; the result is by position in it.
/// The largest buffer must hold the largest bucket.
std::vector<BufferUse> assign_buffers(const std::vector<int64_t>& order,
    const std::vector<int64_t>& bucket_bytes, const std::vector<int64_t>& buffer_bytes);

/// The flat buffers that gradients are collected in while they are in flight.
///
/// There are as many as asked for, and the i-th is as large as the i-th largest bucket: one huge embedding
/// does not make every buffer huge.
class GradientPool {
 public:
  /// `bucket_bytes`: of each bucket's gradients on the wire. Collective (allocates from the communicator).
  GradientPool(std::vector<int64_t> bucket_bytes, int buffers, Communicator& communicator, at::Device device);

  /// Gives out the buffers to buckets that are launched in this order.
  void assign(const std::vector<int64_t>& order);
  /// The last position before `position` whose bucket has the same buffer; -1: none.
  int64_t user_before(size_t position) const { return uses_[position].user_before; }
  /// The first elements of the buffer of the bucket at `position`.
  at::Tensor view(size_t position, int64_t numel, c10::ScalarType dtype) const;

 private:
  std::vector<int64_t> bucket_bytes_;
  std::vector<at::Tensor> buffers_;  ///< bytes, from largest to smallest
  std::vector<BufferUse> uses_;      ///< by position in the order
};

}  // namespace zerosched::detail
