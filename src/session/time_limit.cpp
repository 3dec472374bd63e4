#include "session/time_limit.h"

#include "base/running_time.h"
#include "base/start_thread.h"
#include "comm/failure/report_end.h"

#include <zerosched/exit_codes.h>

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include <unistd.h>

namespace zerosched::detail {

namespace {

// Clocks count nanoseconds in 64 bits, and a timeout may be any number.
constexpr double kLongestSeconds = 1e9;
// How often the time is looked at, for it not to count as a standstill.
constexpr auto kLook = std::chrono::milliseconds(100);

}  // namespace

TimeLimit::TimeLimit(int rank, double seconds, std::string message, bool ends_process)
    : thread_(start_thread([this, rank, seconds, message = std::move(message), ends_process] {
        std::unique_lock<std::mutex> lock(mutex_);
        const std::chrono::duration<double> time(std::min(seconds, kLongestSeconds));
        const auto start = running_now();
        while (!kept_ && running_now() - start < time) changed_.wait_for(lock, kLook);
        if (kept_) return;
        if (!ends_process) {
          TORCH_WARN("zerosched: rank ", rank, " waits: ", message);
          return;
        }
        report_end(rank, message);
        // Not MPI_Abort, which is for after MPI_Init, and where another thread may be stuck in MPI as well.
        _exit(kFailureExitCode);
      })) {}

TimeLimit::~TimeLimit() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_ = true;
    changed_.notify_one();
  }
  thread_.join();
}

}  // namespace zerosched::detail
