#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace zerosched::detail {

/// While it lives, this process has `seconds` before it ends with `message` on stderr and exit code 70, of
/// which the launcher makes the end of the job; or, unless it `ends_process`, before it says so and waits on. For calls
/// that wait for other ranks and can neither be given up nor hear that one of them is gone. Time in which the process was
/// stopped does not count.
class TimeLimit {
 public:
  TimeLimit(int rank, double seconds, std::string message, bool ends_process);
  ~TimeLimit();
  TimeLimit(const TimeLimit&) = delete;
  TimeLimit& operator=(const TimeLimit&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool kept_ = false;  // under mutex_
  std::thread thread_;
};

}  // namespace zerosched::detail
