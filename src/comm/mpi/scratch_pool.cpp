#include "comm/mpi/scratch_pool.h"

#include <utility>

namespace zerosched::detail {

ScratchPool::Buffer ScratchPool::take(int64_t byte_count) {
  std::unique_ptr<char[]> memory;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.lower_bound(byte_count);
    if (found != free_.end()) {
      byte_count = found->first;
      memory = std::move(found->second);
      free_.erase(found);
    }
  }
  if (memory == nullptr) memory.reset(new char[static_cast<size_t>(byte_count)]);
  return {memory.release(), [pool = shared_from_this(), byte_count](char* buffer) {
            std::unique_ptr<char[]> back(buffer);
            const std::lock_guard<std::mutex> lock(pool->mutex_);
            pool->free_.emplace(byte_count, std::move(back));
          }};
}

}  // namespace zerosched::detail
