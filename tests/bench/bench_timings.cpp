// What it costs that the timings of every step are taken, without the step:
//   bench_timings [PARAMETERS, default 77] [BUCKETS, default 5]
// The defaults are those of README's whole training steps. Prints nanoseconds per step.
#include "base/blocked_time.h"
#include "engine/phase_timer.h"
#include "engine/step_timings.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace {

using zerosched::detail::BlockedTimer;
using zerosched::detail::PhaseTimer;
using Clock = std::chrono::steady_clock;

Clock::time_point last_hook;

// As gradient_reducer.cpp, engine.cpp and the waits of communicators do it, every one of which blocks.
void time_step(
    zerosched::detail::StepTimings& all, zerosched::Timings& timings, int64_t parameters, int64_t buckets) {
  for (int64_t p = 0; p < parameters; ++p) last_hook = Clock::now();
  { const BlockedTimer stop_signal; }
  timings = {};
  const zerosched::detail::StepTimings::Recorder recorder(all, timings);
  const PhaseTimer whole_step(timings.step);
  { const PhaseTimer timer(timings.collect_gradients); }
  for (int64_t b = 0; b < buckets; ++b) {
    {
      const PhaseTimer timer(timings.wait_reduce_scatter);
      const BlockedTimer blocked;
    }
    { const PhaseTimer timer(timings.update); }
    const PhaseTimer timer(timings.wait_all_gather);
  }
  const PhaseTimer timer(timings.wait_all_gather);
  for (int64_t b = 0; b < buckets; ++b) const BlockedTimer blocked;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t parameters = argc > 1 ? std::atoll(argv[1]) : 77;
  const int64_t buckets = argc > 2 ? std::atoll(argv[2]) : 5;
  constexpr int kRounds = 20, kSteps = 5000;
  zerosched::detail::StepTimings all;
  zerosched::Timings timings;
  double best = 0, worst = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = Clock::now();
    for (int step = 0; step < kSteps; ++step) time_step(all, timings, parameters, buckets);
    const double per_step = std::chrono::duration<double, std::nano>(Clock::now() - start).count() / kSteps;
    best = round == 0 ? per_step : std::min(best, per_step);
    worst = std::max(worst, per_step);
  }
  std::printf("%lld parameters, %lld buckets: %.0f ns per step, at worst %.0f\n",
      static_cast<long long>(parameters), static_cast<long long>(buckets), best, worst);
}
