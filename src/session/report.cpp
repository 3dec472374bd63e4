#include "session/report.h"

#include "comm/message_of.h"

#include <atomic>
#include <cstdio>

#include <unistd.h>

namespace zerosched::detail {

void report_end(int rank, const std::string& message) noexcept {
  static std::atomic<bool> reported{false};
  if (reported.exchange(true)) return;
  std::fflush(stdout);
  const std::string line = "zerosched: rank " + std::to_string(rank) + " stops: " + message + "\n";
  const auto written = ::write(STDERR_FILENO, line.data(), line.size());
  static_cast<void>(written);  // there is nobody left to tell
}

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

}  // namespace zerosched::detail
