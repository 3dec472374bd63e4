#pragma once

#include <zerosched/communicator.h>
#include <zerosched/timings.h>

#include <chrono>
#include <cstdint>
#include <optional>

namespace zerosched::detail {

/// Sums up the timings of this rank's steps; local until a report is asked for.
class StepTimings {
 public:
  /// Adds `timings` when it ends, after whatever measures its phases.
  class Recorder {
   public:
    Recorder(StepTimings& all, Timings& timings) : all_(all), timings_(timings) {}
    ~Recorder() { all_.add(timings_); }
    Recorder(const Recorder&) = delete;
    Recorder& operator=(const Recorder&) = delete;

   private:
    StepTimings& all_;
    Timings& timings_;
  };

  /// Of all steps since the last report. Collective: one all-gather.
  TimingReport report(Communicator& communicator);

 private:
  using Clock = std::chrono::steady_clock;

  /// For a step that ends now; fills in `between_steps`.
  void add(Timings& timings);

  int64_t steps_ = 0;
  Timings sum_, worst_;
  std::optional<Clock::time_point> last_end_;
};

}  // namespace zerosched::detail
