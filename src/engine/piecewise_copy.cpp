#include "engine/piecewise_copy.h"

#include "base/backoff.h"

#include <algorithm>

namespace zerosched::detail {
namespace {

int64_t pieces_of(int64_t byte_count) { return (byte_count + kPieceBytes - 1) / kPieceBytes; }

int64_t bytes_of(int64_t piece, int64_t byte_count) {
  return std::min(kPieceBytes, byte_count - piece * kPieceBytes);
}

}  // namespace

// Rules 5 and 6.
PinnedBuffer& PiecewiseCopy::buffer(int64_t i) {
  auto& buffer = buffers_[static_cast<size_t>(i % 2)];
  if (!buffer) buffer = std::make_unique<PinnedBuffer>(runtime_, device_, kPieceBytes);
  for (Backoff backoff(Backoff::Kind::waiting); !buffer->is_copied();) backoff.pause(false);
  return *buffer;
}

void PiecewiseCopy::read(const void* from, int64_t byte_count, device::Stream stream,
    const std::function<void(const std::byte* bytes, int64_t count)>& take) {
  const auto* bytes = static_cast<const std::byte*>(from);
  const int64_t pieces = pieces_of(byte_count);
  for (int64_t i = 0; i <= pieces; ++i) {
    if (i < pieces) {
      PinnedBuffer& next = buffer(i);
      next.copy(next.memory(), bytes + i * kPieceBytes, bytes_of(i, byte_count), stream);
    }
    if (i > 0) take(buffer(i - 1).memory(), bytes_of(i - 1, byte_count));
  }
}

void PiecewiseCopy::write(void* to, int64_t byte_count, device::Stream stream,
    const std::function<void(std::byte* bytes, int64_t count)>& give) {
  auto* bytes = static_cast<std::byte*>(to);
  for (int64_t i = 0; i < pieces_of(byte_count); ++i) {
    PinnedBuffer& next = buffer(i);
    give(next.memory(), bytes_of(i, byte_count));
    next.copy(bytes + i * kPieceBytes, next.memory(), bytes_of(i, byte_count), stream);
  }
}

}  // namespace zerosched::detail
