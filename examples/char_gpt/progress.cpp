#include "progress.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

Progress::Progress(std::string style, int64_t steps) : style_(std::move(style)), steps_(steps) {
  if (style_ == "auto") style_ = isatty(STDERR_FILENO) ? "live" : "lines";
}

void Progress::update(int64_t step, double loss, double tokens_per_second) {
  const auto now = Clock::now();
  if (style_ == "off" || (now < next_ && step < steps_)) return;
  next_ = now + (style_ == "live" ? std::chrono::milliseconds(200) : std::chrono::milliseconds(5000));
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double seconds_per_step = elapsed / static_cast<double>(step);
  const auto left = static_cast<int64_t>(seconds_per_step * static_cast<double>(steps_ - step));
  std::fprintf(stderr, "%sstep %lld/%lld  loss %.3f  %.0f tokens/s  %lld:%02lld left%s",
      line_open_ ? "\r" : "", static_cast<long long>(step), static_cast<long long>(steps_), loss,
      tokens_per_second, static_cast<long long>(left / 60), static_cast<long long>(left % 60),
      style_ == "live" ? "\033[K" : "\n");  // erases what a longer line left
  std::fflush(stderr);
  line_open_ = style_ == "live";
}

void Progress::finish() {
  if (line_open_) std::fputc('\n', stderr);
  line_open_ = false;
}
