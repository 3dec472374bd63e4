#include "comm/member.h"

namespace zerosched::detail {

void set_owner(Communicator& communicator, const std::string& owner) {
  if (auto* member = dynamic_cast<Member*>(&communicator)) member->set_owner(owner);
}

void fail(Communicator& communicator, const Cause& cause) noexcept {
  auto* member = dynamic_cast<Member*>(&communicator);
  member != nullptr ? member->fail(cause) : communicator.abort(cause.text);
}

Cause cause(const Communicator& communicator) {
  const auto* member = dynamic_cast<const Member*>(&communicator);
  return member != nullptr ? member->cause() : Cause{communicator.failure()};
}

bool leave(Communicator& communicator, const std::string& why) noexcept {
  auto* member = dynamic_cast<Member*>(&communicator);
  if (member != nullptr) member->leave(why);
  return member != nullptr;
}

}  // namespace zerosched::detail
