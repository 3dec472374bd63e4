#pragma once

#include "comm/failure/control_message.h"
#include "comm/failure/header.h"

#include <cstdint>
#include <deque>

namespace zerosched::detail {

/// The newest collectives of a communicator on this rank: what it answers when another rank asks.
class History {
 public:
  void add(const Header& header) {
    headers_.push_back(header);
    if (headers_.size() > kKept) headers_.pop_front();
  }

  /// Number of the collective after the newest.
  int64_t next() const { return headers_.empty() ? 0 : headers_.back().sequence + 1; }

  /// Where this rank is, relative to collective `sequence`.
  ControlMessage::Position position(int64_t sequence) const {
    ControlMessage::Position position;
    if (headers_.empty()) return position;
    position.launched = next();
    position.has_last = true;
    position.last = headers_.back();
    if (sequence >= headers_.front().sequence && sequence < position.launched) {
      position.has_asked = true;
      position.asked = headers_[static_cast<size_t>(sequence - headers_.front().sequence)];
    }
    return position;
  }

 private:
  static constexpr size_t kKept = 1024;  // as may be in flight
  std::deque<Header> headers_;           // oldest first
};

}  // namespace zerosched::detail
