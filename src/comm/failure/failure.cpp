#include "comm/failure/failure.h"

#include <utility>

namespace zerosched::detail {

Failure::Failure(std::shared_ptr<Failure> ancestor) : ancestor_(std::move(ancestor)) {}

bool Failure::set(Cause cause, Origin origin) {
  if (cause.text.empty()) cause.text = "the communicator was aborted";
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!cause_.text.empty()) return false;
    cause_ = cause;
  }
  for (auto* relative = this; relative != nullptr; relative = relative->ancestor_.get()) {
    if (origin == Origin::parted) break;
    const std::lock_guard<std::mutex> lock(relative->mutex_);
    if (!relative->family_cause_.text.empty()) continue;
    relative->family_cause_ = cause;
    relative->family_origin_ = origin;
  }
  // Last: whoever sees the failure is to find it in the family as well.
  set_.store(true, std::memory_order_release);
  return true;
}

Cause Failure::cause() const {
  if (!is_set()) return {};
  const std::lock_guard<std::mutex> lock(mutex_);
  return cause_;
}

Cause Failure::cause_of_family() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return family_cause_;
}

Failure::Origin Failure::origin_of_family() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return family_origin_;
}

}  // namespace zerosched::detail
