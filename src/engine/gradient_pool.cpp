#include "engine/gradient_pool.h"

#include <algorithm>
#include <functional>

namespace zerosched::detail {

int64_t gradient_bytes(const Bucket& bucket, int64_t world_size) {
  return world_size * bucket.gradient_slice_numel() *
         static_cast<int64_t>(c10::elementSize(bucket.reduce_dtype));
}

GradientPool::GradientPool(const Layout& layout, int buffers, Communicator& communicator, at::Device device)
    : world_size_(layout.world_size) {
  std::vector<int64_t> bytes;
  for (const Bucket& bucket : layout.buckets) bytes.push_back(gradient_bytes(bucket, layout.world_size));
  std::sort(bytes.begin(), bytes.end(), std::greater<>());
  bytes.resize(std::min(bytes.size(), static_cast<size_t>(buffers)));
  for (const int64_t size : bytes) {
    buffers_.push_back(communicator.allocate(size, c10::ScalarType::Byte, device));
  }
  taken_.assign(buffers_.size(), false);
}

int GradientPool::take(const Bucket& bucket) {
  const int64_t needed = gradient_bytes(bucket, world_size_);
  for (int i = static_cast<int>(buffers_.size()) - 1; i >= 0; --i) {
    const auto index = static_cast<size_t>(i);
    if (taken_[index] || buffers_[index].numel() < needed) continue;
    taken_[index] = true;
    return i;
  }
  return -1;
}

void GradientPool::give_back(int index) { taken_[static_cast<size_t>(index)] = false; }

at::Tensor GradientPool::view(int index, const Bucket& bucket) const {
  return buffers_[static_cast<size_t>(index)]
      .narrow(0, 0, gradient_bytes(bucket, world_size_))
      .view(bucket.reduce_dtype);
}

}  // namespace zerosched::detail
