#include "engine/pinned_buffer.h"

#include "base/backoff.h"

#include <chrono>
#include <exception>

namespace zerosched::detail {
namespace {

constexpr auto kPatience = std::chrono::seconds(5);

}  // namespace

PinnedBuffer::PinnedBuffer(device::Runtime& runtime, int device, int64_t byte_count)
    : runtime_(runtime),
      byte_count_(byte_count),
      memory_(runtime.allocate_pinned(byte_count)),
      copied_(runtime.create_event(device)) {}

PinnedBuffer::~PinnedBuffer() {
  if (!ends_in_time()) return;
  runtime_.destroy_event(copied_);
  runtime_.free_pinned(memory_);
}

void PinnedBuffer::copy(void* to, const void* from, int64_t byte_count, device::Stream stream) {
  runtime_.copy(to, from, byte_count, stream);
  runtime_.record(copied_, stream);
}

bool PinnedBuffer::ends_in_time() const noexcept {
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  try {
    for (Backoff backoff(Backoff::Kind::waiting); !is_copied(); backoff.pause(false)) {
      if (std::chrono::steady_clock::now() > give_up) return false;
    }
  } catch (const std::exception&) {
    // A device that is lost touches nothing any more.
  }
  return true;
}

PinnedBuffer& PinnedBuffers::free_buffer(int64_t byte_count) {
  for (const auto& buffer : buffers_) {
    if (buffer->byte_count() >= byte_count && buffer->is_copied()) return *buffer;
  }
  return *buffers_.emplace_back(std::make_unique<PinnedBuffer>(runtime_, device_, byte_count));
}

}  // namespace zerosched::detail
