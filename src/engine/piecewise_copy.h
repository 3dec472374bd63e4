#pragma once

#include "engine/pinned_buffer.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace zerosched::detail {

/// What is read from or written to host memory at a time.
inline constexpr int64_t kPieceBytes = int64_t{4} << 20;

/// Copies between device memory and a reader or writer on the host, in pieces and in order, through two pinned buffers: while
/// the host has one piece the device copies the other. What the stream holds comes before.
class PiecewiseCopy {
 public:
  PiecewiseCopy(device::Runtime& runtime, int device) : runtime_(runtime), device_(device) {}

  /// Gives all bytes to `take`. Blocks.
  void read(const void* from, int64_t byte_count, device::Stream stream,
      const std::function<void(const std::byte* bytes, int64_t count)>& take);
  /// Has `give` write all bytes. The last pieces may still be on their way when it returns.
  void write(void* to, int64_t byte_count, device::Stream stream,
      const std::function<void(std::byte* bytes, int64_t count)>& give);

 private:
  /// Of piece number i, once no copy uses it.
  PinnedBuffer& buffer(int64_t i);

  device::Runtime& runtime_;
  const int device_;
  std::array<std::unique_ptr<PinnedBuffer>, 2> buffers_;  ///< made when they are first used
};

}  // namespace zerosched::detail
