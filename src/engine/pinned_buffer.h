#pragma once

#include "device/runtime.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace zerosched::detail {

/// Pinned host memory that the device copies from or to, and the event behind the copy.
class PinnedBuffer {
 public:
  PinnedBuffer(device::Runtime& runtime, int device, int64_t byte_count);
  /// Waits for the copy, but not for ever: what a stuck device may yet touch stays allocated.
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* memory() const { return static_cast<std::byte*>(memory_); }
  int64_t byte_count() const { return byte_count_; }
  bool is_copied() const { return runtime_.query(copied_); }
  /// One of the two is this memory.
  void copy(void* to, const void* from, int64_t byte_count, device::Stream stream);

 private:
  bool ends_in_time() const noexcept;

  device::Runtime& runtime_;
  const int64_t byte_count_;
  void* memory_;
  device::Event copied_;
};

/// As many of them as copies are in flight at once: the host need not wait for any.
class PinnedBuffers {
 public:
  PinnedBuffers(device::Runtime& runtime, int device) : runtime_(runtime), device_(device) {}
  /// One that no copy uses, of at least so many bytes.
  PinnedBuffer& free_buffer(int64_t byte_count);

 private:
  device::Runtime& runtime_;
  const int device_;
  std::vector<std::unique_ptr<PinnedBuffer>> buffers_;
};

}  // namespace zerosched::detail
