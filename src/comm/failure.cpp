#include "comm/failure.h"

#include <utility>

namespace zerosched::detail {

Failure::Failure(std::shared_ptr<Failure> ancestor) : ancestor_(std::move(ancestor)) {}

bool Failure::set(const std::string& message) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!message_.empty()) return false;
    message_ = message.empty() ? "the communicator was aborted" : message;
    if (family_message_.empty()) family_message_ = message_;
  }
  set_.store(true, std::memory_order_release);
  for (auto* older = ancestor_.get(); older != nullptr; older = older->ancestor_.get()) {
    const std::lock_guard<std::mutex> lock(older->mutex_);
    if (older->family_message_.empty()) older->family_message_ = message_;
  }
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

}  // namespace zerosched::detail
