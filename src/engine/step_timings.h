#pragma once

#include <zerosched/communicator.h>
#include <zerosched/timings.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <thread>

namespace zerosched::detail {

/// Sums up the timings of this rank's steps; local until a report is asked for.
class StepTimings {
 public:
  /// Adds `timings` when it ends, after whatever measures its phases.
  class Recorder {
   public:
    Recorder(StepTimings& all, Timings& timings) : all_(all), timings_(timings) { all_.begin(timings_); }
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
  struct End {
    Clock::time_point time;
    Clock::duration waited;  ///< by `thread` until then
    std::thread::id thread;
  };

  /// For a step that begins now; fills in what was between steps but wait_ready, which is there.
  void begin(Timings& timings) const;
  /// For a step that ends now.
  void add(const Timings& timings);

  int64_t steps_ = 0;
  Timings sum_, worst_;
  std::optional<End> last_end_;
};

}  // namespace zerosched::detail
