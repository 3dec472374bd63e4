#include "session/time_limit.h"

#include "comm/start_thread.h"
#include "session/report.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <unistd.h>

namespace zerosched::detail {

namespace {

// Clocks count nanoseconds in 64 bits, and a timeout may be any number.
constexpr double kLongestSeconds = 1e9;

}  // namespace

TimeLimit::TimeLimit(int rank, double seconds, std::string message)
    : thread_(start_thread([this, rank, seconds, message = std::move(message)] {
        std::unique_lock<std::mutex> lock(mutex_);
        const std::chrono::duration<double> time(std::min(seconds, kLongestSeconds));
        if (changed_.wait_for(lock, time, [this] { return kept_; })) return;
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
