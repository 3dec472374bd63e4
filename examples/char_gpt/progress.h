#pragma once

#include <chrono>
#include <cstdint>
#include <string>

/// A line on standard error that says how far training is: rewritten in place, or a new one now and then.
class Progress {
 public:
  /// `style`: "live", "lines", "off", or "auto": live if standard error is a terminal.
  Progress(std::string style, int64_t steps);

  void update(int64_t step, double loss, double tokens_per_second);
  /// Ends the live line, so that other output starts on a line of its own.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;

  std::string style_;
  int64_t steps_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_ = start_;
  bool line_open_ = false;
};
