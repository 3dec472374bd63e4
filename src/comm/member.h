#pragma once

#include "comm/failure/cause.h"

#include <zerosched/communicator.h>

#include <string>

namespace zerosched::detail {

/// Implemented by communicators whose ranks hear what it is for, who has left it, and why it has failed.
class Member {
 public:
  virtual ~Member() = default;
  /// Who uses the communicator, for messages: "AdamWScheduleFree #2". Local.
  virtual void set_owner(const std::string& owner) = 0;
  /// This rank launches no more collectives. A rank that does, or has done so, gives up at once, with `why`, a sentence
  /// that begins with this rank; if none does, nothing has failed. Local, never blocks and never throws.
  virtual void leave(const std::string& why) noexcept = 0;
  /// Communicator::abort() with all that is known.
  virtual void fail(const Cause& cause) noexcept = 0;
  /// What Communicator::failure() is the text of.
  virtual Cause cause() const = 0;
  /// fail() for a rank that has left, where no other waits for it: what is in flight ends, nobody is told, and the job has
  /// not failed.
  virtual void abandon(const Cause& cause) noexcept = 0;
};

/// The same where the communicator can do it, and nothing where it cannot.
void set_owner(Communicator& communicator, const std::string& owner);
/// The same by what every communicator has, where there is no more: its text alone.
void fail(Communicator& communicator, const Cause& cause) noexcept;
Cause cause(const Communicator& communicator);
/// Whether the other ranks are told.
bool leave(Communicator& communicator, const std::string& why) noexcept;

}  // namespace zerosched::detail
