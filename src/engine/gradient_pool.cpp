#include "engine/gradient_pool.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <functional>
#include <utility>

namespace zerosched::detail {

std::vector<BufferUse> assign_buffers(const std::vector<int64_t>& order,
    const std::vector<int64_t>& bucket_bytes, const std::vector<int64_t>& buffer_bytes) {
  std::vector<int64_t> last_user(buffer_bytes.size(), -1);
  std::vector<BufferUse> uses;
  for (size_t position = 0; position < order.size(); ++position) {
    const int64_t bytes = bucket_bytes[static_cast<size_t>(order[position])];
    int best = -1;
    // Of those never used the smallest, so that the largest is still free for the bucket that needs it.
    for (int i = static_cast<int>(buffer_bytes.size()) - 1; i >= 0; --i) {
      const auto index = static_cast<size_t>(i);
      if (buffer_bytes[index] < bytes) continue;
      if (best < 0 || last_user[index] < last_user[static_cast<size_t>(best)]) best = i;
    }
    TORCH_INTERNAL_ASSERT(best >= 0, "bucket ", order[position], " fits no buffer");
    int64_t& user = last_user[static_cast<size_t>(best)];
    uses.push_back({best, std::exchange(user, static_cast<int64_t>(position))});
  }
  return uses;
}

GradientPool::GradientPool(
    std::vector<int64_t> bucket_bytes, int buffers, Communicator& communicator, at::Device device)
    : bucket_bytes_(std::move(bucket_bytes)) {
  std::vector<int64_t> sizes = bucket_bytes_;
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  sizes.resize(std::min(sizes.size(), static_cast<size_t>(buffers)));
  for (const int64_t bytes : sizes) {
    buffers_.push_back(
        communicator.allocate(bytes, c10::ScalarType::Byte, device, Collective::reduce_scatter));
  }
}

void GradientPool::assign(const std::vector<int64_t>& order) {
  if (buffers_.empty()) return;
  std::vector<int64_t> buffer_bytes;
  for (const at::Tensor& buffer : buffers_) buffer_bytes.push_back(buffer.numel());
  uses_ = assign_buffers(order, bucket_bytes_, buffer_bytes);
}

at::Tensor GradientPool::view(size_t position, int64_t numel, c10::ScalarType dtype) const {
  return buffers_[static_cast<size_t>(uses_[position].buffer)]
      .narrow(0, 0, numel * static_cast<int64_t>(c10::elementSize(dtype)))
      .view(dtype);
}

}  // namespace zerosched::detail
