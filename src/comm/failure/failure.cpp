#include "comm/failure/failure.h"

#include <utility>

namespace zerosched::detail {

Failure::Failure(std::shared_ptr<Failure> ancestor) : ancestor_(std::move(ancestor)) {}

bool Failure::set(const std::string& message, Origin origin) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!message_.empty()) return false;
    message_ = message.empty() ? "the communicator was aborted" : message;
  }
  for (auto* relative = this; relative != nullptr; relative = relative->ancestor_.get()) {
    if (origin == Origin::parted) break;
    const std::lock_guard<std::mutex> lock(relative->mutex_);
    if (!relative->family_message_.empty()) continue;
    relative->family_message_ = message_;
    relative->family_origin_ = origin;
  }
  // Last: whoever sees the failure is to find it in the family as well.
  set_.store(true, std::memory_order_release);
  return true;
}

std::string Failure::message() const {
  if (!is_set()) return {};
  const std::lock_guard<std::mutex> lock(mutex_);
  return message_;
}

std::string Failure::message_of_family() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return family_message_;
}

Failure::Origin Failure::origin_of_family() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return family_origin_;
}

}  // namespace zerosched::detail
