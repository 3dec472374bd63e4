#pragma once

#include "comm/failure/header.h"

#include <memory>
#include <string>

namespace zerosched::detail {

/// Lives while the calling thread is in a public function of the library. `function` is a string literal that users know
/// it by: "eval()".
class InCall {
 public:
  explicit InCall(const char* function);
  ~InCall();
  InCall(const InCall&) = delete;
  InCall& operator=(const InCall&) = delete;

  /// The innermost one of this thread; `otherwise` outside of all. A label for collectives that many functions make.
  static const char* current_or(const char* otherwise) noexcept;

 private:
  const char* before_;
};

/// Lives while the calling thread is blocked in the collective of `header`, which outlives it. `owner`: who uses the
/// communicator; null if nobody has said so.
class WaitsIn {
 public:
  WaitsIn(const Header& header, std::shared_ptr<const std::string> owner);
  ~WaitsIn();
  WaitsIn(const WaitsIn&) = delete;
  WaitsIn& operator=(const WaitsIn&) = delete;

 private:
  const int exceptions_at_start_;
};

/// The process goes on, with other collectives or communicators.
void forget_what_was_given_up() noexcept;

/// Where the threads of this process are, for a rank that waits for it: "is in save_checkpoint()", "waits in all_reduce #7
/// 'eval()' of AdamWScheduleFree #2"; or what one has waited for last, if that was given up; empty if none is in the library.
/// Any thread.
std::string whereabouts();

}  // namespace zerosched::detail
