#include "engine/gradient_pool.h"

#include <algorithm>
#include <functional>

namespace zerosched::detail {

GradientPool::GradientPool(
    std::vector<int64_t> bucket_bytes, int buffers, Communicator& communicator, at::Device device) {
  std::sort(bucket_bytes.begin(), bucket_bytes.end(), std::greater<>());
  bucket_bytes.resize(std::min(bucket_bytes.size(), static_cast<size_t>(buffers)));
  for (const int64_t bytes : bucket_bytes) {
    buffers_.push_back(communicator.allocate(bytes, c10::ScalarType::Byte, device));
  }
  taken_.assign(buffers_.size(), false);
}

int GradientPool::take(int64_t bytes) {
  for (int i = static_cast<int>(buffers_.size()) - 1; i >= 0; --i) {
    const auto index = static_cast<size_t>(i);
    if (taken_[index] || buffers_[index].numel() < bytes) continue;
    taken_[index] = true;
    return i;
  }
  return -1;
}

void GradientPool::give_back(int index) { taken_[static_cast<size_t>(index)] = false; }

at::Tensor GradientPool::view(int index, int64_t numel, c10::ScalarType dtype) const {
  return buffers_[static_cast<size_t>(index)]
      .narrow(0, 0, numel * static_cast<int64_t>(c10::elementSize(dtype)))
      .view(dtype);
}

}  // namespace zerosched::detail
