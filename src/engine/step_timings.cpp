#include "engine/step_timings.h"

#include "base/blocked_time.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstddef>

namespace zerosched::detail {
namespace {

double seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

void StepTimings::begin(Timings& timings) const {
  if (!last_end_) return;
  timings.between_steps = seconds(Clock::now() - last_end_->time);
  // A thread may have the id of one that is gone, and has waited less then.
  if (last_end_->thread == std::this_thread::get_id()) {
    timings.wait_between_steps = std::max(0.0, seconds(waited() - last_end_->waited) - timings.wait_ready);
  }
}

void StepTimings::add(const Timings& timings) {
  last_end_ = End{Clock::now(), waited(), std::this_thread::get_id()};
  ++steps_;
  for (const TimingPhase& phase : kTimingPhases) {
    sum_.*phase.seconds += timings.*phase.seconds;
    worst_.*phase.seconds = std::max(worst_.*phase.seconds, timings.*phase.seconds);
  }
}

TimingReport StepTimings::report(Communicator& communicator) {
  // Per rank: the means of all phases, then their worst.
  constexpr auto kPerRank = static_cast<int64_t>(2 * kTimingPhases.size());
  const at::Tensor all = at::empty({communicator.size() * kPerRank}, at::kDouble);
  double* own = all.mutable_data_ptr<double>() + communicator.rank() * kPerRank;
  for (const TimingPhase& phase : kTimingPhases) {
    *own++ = steps_ == 0 ? 0 : sum_.*phase.seconds / static_cast<double>(steps_);
  }
  for (const TimingPhase& phase : kTimingPhases) *own++ = worst_.*phase.seconds;
  communicator.all_gather(all, {"timings"})->wait();

  TimingReport report;
  report.steps = steps_;
  report.ranks.resize(static_cast<size_t>(communicator.size()));
  const double* value = all.const_data_ptr<double>();
  for (TimingReport::Rank& rank : report.ranks) {
    for (const TimingPhase& phase : kTimingPhases) rank.mean.*phase.seconds = *value++;
    for (const TimingPhase& phase : kTimingPhases) rank.worst.*phase.seconds = *value++;
  }
  steps_ = 0;
  sum_ = {};
  worst_ = {};
  return report;
}

}  // namespace zerosched::detail
