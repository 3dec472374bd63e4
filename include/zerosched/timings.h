#pragma once

#include <zerosched/export.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace zerosched {

/// Seconds that one rank spent in each phase of a step. On a GPU they are the host's, which queues the work
/// and goes on; only what waits for the GPU takes as long as it does there.
struct Timings {
  double between_steps = 0;  ///< since the last step() ended, whatever was done; 0 in the first step
  /// The part of it that the thread which calls step() was blocked in other collectives: of a StopSignal, an
  /// evaluation, a checkpoint, of the program's own or of another optimizer. 0 if another thread called step()
  /// before.
  double wait_between_steps = 0;
  double backward = 0;  ///< the part of it from the first gradient hook to the last; 0 in compatible mode
  /// Moving gradients inside step(): compatible mode, where it includes waiting for a free bucket buffer, and
  /// gradients that no hook has moved.
  double collect_gradients = 0;
  double wait_reduce_scatter = 0;  ///< blocked in step() until reduced gradients were there
  double norm = 0;                 ///< global gradient norm, its all-reduce included
  double update = 0;               ///< the fused update of this rank's shard
  /// Blocked in step() until every rank's y was there. With ShardingOptions::overlap_forward: until that of the step
  /// before was there, which is wait_ready, and what launching its own takes in step().
  double wait_all_gather = 0;
  double step = 0;  ///< all of step(), without a closure
  /// With ShardingOptions::overlap_forward the part of wait_all_gather that is a part of between_steps: blocked in
  /// ready(), hooks and whatever else waited for y. Not in wait_between_steps.
  double wait_ready = 0;
};

/// A phase by name, to go through all of them.
struct TimingPhase {
  const char* name;          ///< as in Timings
  double Timings::*seconds;  ///< the member of this name
};
inline constexpr std::array<TimingPhase, 10> kTimingPhases = {
    {{"between_steps", &Timings::between_steps}, {"wait_between_steps", &Timings::wait_between_steps},
        {"backward", &Timings::backward}, {"collect_gradients", &Timings::collect_gradients},
        {"wait_reduce_scatter", &Timings::wait_reduce_scatter}, {"norm", &Timings::norm},
        {"update", &Timings::update}, {"wait_all_gather", &Timings::wait_all_gather},
        {"step", &Timings::step}, {"wait_ready", &Timings::wait_ready}}};

/// Where the steps of all ranks spent their time. What ShardedOptimizer::timing_report() returns is the same
/// on every rank.
struct ZEROSCHED_EXPORT TimingReport {
  /// One rank's steps.
  struct Rank {
    Timings mean;   ///< per step
    Timings worst;  ///< the longest of each phase, each perhaps of another step
  };

  /// A rank that the others wait for.
  struct Straggler {
    int rank = -1;       ///< which one
    double seconds = 0;  ///< how much longer than it the others wait per step, on average
    /// What it spends so much longer on than the others: the name of a phase, or empty if none stands out.
    /// "between_steps" is then what is left of it without waiting.
    std::string phase;
  };

  int64_t steps = 0;        ///< since the last report
  std::vector<Rank> ranks;  ///< by rank

  /// The rank that waits least for the others, if these wait longer by more than a twentieth of the time.
  std::optional<Straggler> straggler() const;

  /// A table of milliseconds, a line per rank, and a line that names the straggler if there are several
  /// ranks. Ends with a newline; empty if there was no step.
  std::string table() const;
};

}  // namespace zerosched
