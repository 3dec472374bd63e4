#include "comm/failure/report_end.h"

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

}  // namespace zerosched::detail
