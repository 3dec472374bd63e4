#include "comm/failure/terminate.h"

#include "base/message_of.h"
#include "base/owner_process.h"

#include <atomic>
#include <cstdlib>
#include <exception>

#include <unistd.h>

namespace zerosched::detail {

namespace {

// The program's own, if it is another one later.
const std::terminate_handler at_load = std::get_terminate();

std::atomic<EndJob> of_session{nullptr}, of_communicators{nullptr};
std::atomic<std::terminate_handler> before{nullptr};

std::string text_of(const std::exception_ptr& exception) noexcept {
  if (!exception) return "terminated without an exception";
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& error) {
    return message_of(error);
  } catch (...) {
    return "an exception that is not a std::exception";
  }
}

[[noreturn]] void wait_for_end() {
  for (;;) pause();
}

OwnerProcess& owner() {
  static OwnerProcess owner;
  return owner;
}

[[noreturn]] void on_terminate() {
  const EndJob end = of_session != nullptr ? of_session.load() : of_communicators.load();
  if (end == nullptr || !owner().is_this()) {
    if (before != nullptr) before.load()();
    std::abort();
  }
  static std::atomic<bool> entered{false};
  if (entered.exchange(true)) wait_for_end();  // another thread ends the process already
  end(text_of(std::current_exception()));
  std::abort();  // not reached
}

void install() {
  owner();
  if (std::get_terminate() != on_terminate) before = std::set_terminate(on_terminate);
}

}  // namespace

void set_session_end(EndJob end) {
  of_session = end;
  if (end != nullptr) {
    install();
  } else if (of_communicators == nullptr && std::get_terminate() == on_terminate) {
    std::set_terminate(before);
  }
}

void set_communicator_end(EndJob end) {
  if (std::get_terminate() != at_load) return;
  of_communicators = end;
  install();
}

void await_end_on_terminate() { std::set_terminate(wait_for_end); }

}  // namespace zerosched::detail
