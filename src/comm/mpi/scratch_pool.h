#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace zerosched::detail {

/// Host memory for sums in between, kept for the next collective because fresh pages cost as much as a sum.
class ScratchPool : public std::enable_shared_from_this<ScratchPool> {
 public:
  /// Goes back to the pool.
  using Buffer = std::shared_ptr<char>;
  /// At least `byte_count` bytes: the smallest free buffer that will do.
  Buffer take(int64_t byte_count);

 private:
  std::mutex mutex_;
  std::multimap<int64_t, std::unique_ptr<char[]>> free_;  // under mutex_, by size
};

}  // namespace zerosched::detail
