#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

#include <sched.h>

namespace zerosched::detail {

/// How a thread that polls a transport leaves the core to others. Ranks are often bound to one core that
/// computation, the progress thread and, when oversubscribed, other ranks share.
class Backoff {
 public:
  enum class Kind {
    waiting,     ///< a caller has nothing else to do: yields for milliseconds before it sleeps
    background,  ///< the progress thread beside computation: sleeps soon
  };

  explicit Backoff(Kind kind) : kind_(kind) {}

  /// After a poll; `moved` says whether it advanced anything.
  void pause(bool moved) {
    if (moved) {
      idle_polls_ = 0;
      sleep_ = kShortestSleep;
    }
    ++idle_polls_;
    if (idle_polls_ <= (kind_ == Kind::waiting ? kWaitingYields : kBackgroundYields)) {
      sched_yield();
      return;
    }
    std::this_thread::sleep_for(sleep_);
    sleep_ = std::min(sleep_ * 2, kLongestSleep);
  }

 private:
  static constexpr int kWaitingYields = 4000;  // about 2 ms where nobody else wants the core
  static constexpr int kBackgroundYields = 4;
  static constexpr std::chrono::microseconds kShortestSleep{20}, kLongestSleep{200};

  Kind kind_;
  int idle_polls_ = 0;
  std::chrono::microseconds sleep_ = kShortestSleep;
};

}  // namespace zerosched::detail
