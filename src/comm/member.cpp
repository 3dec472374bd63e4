#include "comm/member.h"

namespace zerosched::detail {

void set_owner(Communicator& communicator, const std::string& owner) {
  if (auto* member = dynamic_cast<Member*>(&communicator)) member->set_owner(owner);
}

bool leave(Communicator& communicator, const std::string& why) noexcept {
  auto* member = dynamic_cast<Member*>(&communicator);
  if (member != nullptr) member->leave(why);
  return member != nullptr;
}

}  // namespace zerosched::detail
