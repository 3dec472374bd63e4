#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/stop_signal.h>
#include <zerosched/timings.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace zerosched::testing {
namespace {

constexpr auto kNap = std::chrono::milliseconds(100);
constexpr double kNapSeconds = 0.1;

// Buckets of one parameter each, more of them than there are gradient buffers.
struct Job {
  explicit Job(const ShardingOptions& options = buckets_of(1))
      : optimizer({ParameterGroup(parameters)}, world(), {}, options) {}

  void step(int64_t number) {
    backward(parameters, random_gradients(parameters, number, world()->rank()));
    optimizer.step();
  }

  NamedParameters parameters = make_parameters({{100}, {200}, {300}, {400}, {500}, {600}});
  AdamWScheduleFree optimizer;
};

double waited(const Timings& timings) {
  return timings.wait_between_steps + timings.wait_reduce_scatter + timings.collect_gradients;
}

// Where there are peers to wait for it. Alone there is no straggler.
void expect_straggler(const TimingReport& report, int rank, const std::string& phase) {
  const auto straggler = report.straggler();
  ASSERT_EQ(straggler.has_value(), world()->size() > 1) << report.table();
  if (!straggler) return;
  EXPECT_EQ(straggler->rank, rank) << report.table();
  EXPECT_EQ(straggler->phase, phase) << report.table();
  EXPECT_GT(straggler->seconds, kNapSeconds / 2) << report.table();
  EXPECT_NE(
      report.table().find("Rank " + std::to_string(rank) + " keeps the others waiting"), std::string::npos)
      << report.table();
  for (int r = 0; r < world()->size(); ++r) {
    if (r == rank) continue;
    const Timings& other = report.ranks[static_cast<size_t>(r)].mean;
    EXPECT_GT(waited(other), kNapSeconds / 2) << report.table();
  }
}

TEST(TimingReport, NamesTheRankThatIsSlowInBackward) {
  const int slow = world()->size() - 1;
  Job job;
  // The first parameter's gradient comes last.
  if (world()->rank() == slow) {
    job.parameters[0].second.register_hook([](const at::Tensor&) { std::this_thread::sleep_for(kNap); });
  }
  for (int64_t step = 0; step < 5; ++step) job.step(step);
  const TimingReport report = job.optimizer.timing_report();
  EXPECT_EQ(report.steps, 5);
  ASSERT_EQ(report.ranks.size(), static_cast<size_t>(world()->size()));
  expect_straggler(report, slow, "backward");
  EXPECT_GE(report.ranks[static_cast<size_t>(slow)].mean.backward, kNapSeconds);
  for (const std::string& other : gather_texts(report.table())) EXPECT_EQ(other, report.table());
}

TEST(TimingReport, NamesTheRankThatIsSlowBetweenSteps) {
  Job job;
  for (int64_t step = 0; step < 5; ++step) {
    if (world()->rank() == 0) std::this_thread::sleep_for(kNap);
    job.step(step);
  }
  const TimingReport report = job.optimizer.timing_report();
  expect_straggler(report, 0, "between_steps");
  for (const TimingReport::Rank& rank : report.ranks) {
    EXPECT_EQ(rank.worst.wait_between_steps, 0) << "of waits in step()";
  }
}

// The others wait before their step() begins, so that by its phases alone nobody would be slow.
TEST(TimingReport, NamesTheRankThatIsSlowBeforeACollectiveBetweenSteps) {
  const int slow = world()->size() - 1;
  const StopSignal stop;
  Job job;
  for (int64_t step = 0; step < 5; ++step) {
    if (world()->rank() == slow) std::this_thread::sleep_for(kNap);
    EXPECT_FALSE(stop.requested(*world()));
    job.step(step);
  }
  const TimingReport report = job.optimizer.timing_report();
  expect_straggler(report, slow, "between_steps");
  for (int r = 0; r < world()->size(); ++r) {
    const Timings& mean = report.ranks[static_cast<size_t>(r)].mean;
    EXPECT_LE(mean.wait_between_steps, mean.between_steps);
    if (r == slow) continue;
    EXPECT_GT(mean.wait_between_steps, kNapSeconds / 2) << report.table();
  }
}

// Of two models in turn, a GAN's say: one optimizer's step() is between the steps of the other.
TEST(TimingReport, NamesTheRankThatIsSlowBeforeAnotherOptimizersStep) {
  Job job, other;
  for (int64_t step = 0; step < 5; ++step) {
    if (world()->rank() == 0) std::this_thread::sleep_for(kNap);
    other.step(step);
    job.step(step);
  }
  expect_straggler(job.optimizer.timing_report(), 0, "between_steps");
  expect_straggler(other.optimizer.timing_report(), 0, "between_steps");
}

TEST(TimingReport, WaitsOfAnotherThreadDelayNoStep) {
  Job job;
  const auto communicator = world()->duplicate();
  job.step(0);
  std::thread loader([&] {
    if (communicator->rank() == 0) std::this_thread::sleep_for(kNap);
    communicator->barrier({"loader"})->wait();
  });
  loader.join();
  job.step(1);
  EXPECT_GE(job.optimizer.timings().between_steps, kNapSeconds / 2);
  EXPECT_EQ(job.optimizer.timings().wait_between_steps, 0);
}

TEST(TimingReport, WaitsOfAnotherThreadThatStepsAreNotMixedUp) {
  Job job;
  const auto step_late = [&](int64_t step) {
    if (world()->rank() == 0) std::this_thread::sleep_for(kNap);
    world()->barrier({"late"})->wait();
    job.step(step);
  };
  step_late(0);
  std::thread([&] { step_late(1); }).join();
  EXPECT_EQ(job.optimizer.timings().wait_between_steps, 0);
  step_late(2);
  EXPECT_EQ(job.optimizer.timings().wait_between_steps, 0);
  step_late(3);
  const double least = world()->rank() == 0 ? -1 : kNapSeconds / 2;
  EXPECT_GT(job.optimizer.timings().wait_between_steps, least);
}

TEST(TimingReport, NamesTheSlowRankInCompatibleMode) {
  Job job(buckets_of(1).overlap_backward(false));
  for (int64_t step = 0; step < 5; ++step) {
    if (world()->rank() == 0) std::this_thread::sleep_for(kNap);
    job.step(step);
    job.optimizer.zero_grad();
  }
  expect_straggler(job.optimizer.timing_report(), 0, "between_steps");
}

TEST(TimingReport, IsMeanAndWorstOfTimings) {
  Job job;
  std::vector<Timings> steps;
  for (int64_t step = 0; step < 4; ++step) {
    if (step == 2) std::this_thread::sleep_for(kNap);
    job.step(step);
    steps.push_back(job.optimizer.timings());
  }
  EXPECT_EQ(steps[0].between_steps, 0);
  EXPECT_GE(steps[2].between_steps, kNapSeconds);
  const TimingReport report = job.optimizer.timing_report();
  const auto& own = report.ranks[static_cast<size_t>(world()->rank())];
  for (const auto& [name, seconds] : kTimingPhases) {
    double sum = 0, worst = 0;
    for (const Timings& timings : steps) {
      sum += timings.*seconds;
      worst = std::max(worst, timings.*seconds);
    }
    EXPECT_DOUBLE_EQ(own.mean.*seconds, sum / 4) << name;
    EXPECT_EQ(own.worst.*seconds, worst) << name;
  }
}

TEST(TimingReport, BeginsAnewAfterEachReport) {
  Job job;
  EXPECT_EQ(job.optimizer.timing_report().steps, 0);
  job.step(0);
  job.step(1);
  EXPECT_EQ(job.optimizer.timing_report().steps, 2);
  const TimingReport none = job.optimizer.timing_report();
  EXPECT_EQ(none.steps, 0);
  EXPECT_EQ(none.ranks[0].worst.step, 0);
  EXPECT_EQ(none.table(), "");
  EXPECT_FALSE(none.straggler());
  job.step(2);
  EXPECT_EQ(job.optimizer.timing_report().steps, 1);
}

TEST(TimingReport, RefusesWhileGradientsAreInFlight) {
  Job job{ShardingOptions()};
  backward(job.parameters, random_gradients(job.parameters, 0, world()->rank()));
  expect_error(
      [&] { job.optimizer.timing_report(); }, {"timing_report()", "call step() or zero_grad() first"});
}

TEST(TimingReport, TableIsReadable) {
  TimingReport report;
  report.steps = 20;
  report.ranks.resize(3);
  for (TimingReport::Rank& rank : report.ranks) {
    rank.mean = {0.05, 0, 0.0225, 0, 0.031, 0, 0.002, 0.0001, 0.034};
    rank.worst = {1.25, 0, 0.0402, 0, 0.045, 0, 0.003, 0.0002, 0.0471};
  }
  EXPECT_EQ(report.straggler(), std::nullopt);
  report.ranks[1].mean.backward = 0.052;
  report.ranks[1].mean.wait_reduce_scatter = 0.001;
  EXPECT_EQ(report.table(),
      "Milliseconds per step over 20 steps, mean / worst:\n"
      "               between                     waiting for                     waiting for\n"
      "  rank           steps        backward  reduce-scatter          update      all-gather          "
      "step()\n"
      "     0    50.0 /  1250    22.5 /  40.2    31.0 /  45.0    2.00 /  3.00    0.10 /  0.20    34.0 /  "
      "47.1\n"
      "     1    50.0 /  1250    52.0 /  40.2    1.00 /  45.0    2.00 /  3.00    0.10 /  0.20    34.0 /  "
      "47.1\n"
      "     2    50.0 /  1250    22.5 /  40.2    31.0 /  45.0    2.00 /  3.00    0.10 /  0.20    34.0 /  "
      "47.1\n"
      "Rank 1 keeps the others waiting: 30.0 ms per step longer than it waits itself; its backward takes "
      "longer than theirs.\n");
  // Nobody stands out: both wait for the third, which is no worse than they in anything that is timed.
  report.ranks[1].mean.backward = 0.0225;
  EXPECT_EQ(report.straggler()->phase, "");
}

// A step of 100 ms, of which all are together in step() for 20. Rank 0 works for 30 ms more than the other
// before a collective, where that one waits.
TEST(TimingReport, TakesWaitingForNoWork) {
  TimingReport report;
  report.steps = 20;
  report.ranks.resize(2);
  for (TimingReport::Rank& rank : report.ranks) rank.mean = {0.08, 0, 0.04, 0, 0.01, 0, 0.01, 0, 0.02};
  report.ranks[1].mean.wait_between_steps = 0.03;
  report.ranks[1].worst.wait_between_steps = 0.055;
  ASSERT_TRUE(report.straggler());
  EXPECT_EQ(report.straggler()->rank, 0);
  EXPECT_DOUBLE_EQ(report.straggler()->seconds, 0.03);
  EXPECT_EQ(report.straggler()->phase, "between_steps");
  EXPECT_EQ(report.table(),
      "Milliseconds per step over 20 steps, mean / worst:\n"
      "               waiting\n"
      "  rank   between steps\n"
      "     0    0.00 /  0.00\n"
      "     1    30.0 /  55.0\n"
      "Rank 0 keeps the others waiting: 30.0 ms per step longer than it waits itself; it takes longer "
      "between "
      "steps, outside backward.\n");
  report.ranks[1].mean.wait_between_steps = 0;
  EXPECT_FALSE(report.straggler());
}

}  // namespace
}  // namespace zerosched::testing
