// What waits for parameters that are still arriving by itself, and what becomes of them where a rank fails.
#include "base/message_of.h"
#include "engine/gather_log.h"
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/clip_grad.h>
#include <zerosched/grad_scaler.h>
#include <zerosched/safetensors.h>
#include <zerosched/update_batch_norm.h>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <set>
#include <stdexcept>

namespace zerosched::testing {
namespace {

using Events = std::vector<std::string>;
using std::chrono::milliseconds;

ShardingOptions overlapping(bool checks = false) {
  return buckets_of(1).overlap_forward(true).check_ready(checks);
}

/// A model, and an optimizer of a bucket per parameter.
class Job {
 public:
  explicit Job(
      const ShardingOptions& sharding = overlapping(), milliseconds wait_takes = milliseconds(0),
      const std::function<void(int64_t)>& before_launch = [](int64_t) {}) {
    torch::manual_seed(1);
    model = torch::nn::Sequential(torch::nn::Linear(4, 5), torch::nn::BatchNorm1d(5));
    parameters = parameters_of(*model);
    communicator = std::make_shared<GatherLog>(world(), log, wait_takes, before_launch);
    replace(sharding);
  }

  void replace(const ShardingOptions& sharding = overlapping()) {
    optimizer = std::make_unique<AdamWScheduleFree>(
        *model, communicator, AdamWScheduleFreeOptions(), ShardingOptions(sharding).broadcast_buffers(false));
  }
  void backward(int64_t step = 0) {
    testing::backward(parameters, random_gradients(parameters, step, world()->rank()));
  }
  void step(int64_t number = 0) {
    backward(number);
    optimizer->step();
  }
  /// How many of the last step's gathers `call` has waited for.
  size_t waited_by(const std::function<void()>& call) {
    step();
    log->take();
    call();
    const Events events = log->take();
    std::set<std::string> waits;
    for (const std::string& event : events) {
      if (event.rfind("gather", 0) == 0) break;  // of a step that `call` has made
      waits.insert(event);
    }
    return waits.size();
  }

  std::shared_ptr<Log> log = std::make_shared<Log>();
  torch::nn::Sequential model{nullptr};
  NamedParameters parameters;
  std::shared_ptr<Communicator> communicator;
  std::unique_ptr<AdamWScheduleFree> optimizer;
};

TEST(OverlapForwardEntries, EveryCollectiveCallWaits) {
  const Scratch scratch;
  for (const bool checks : {false, true}) {
    Job job(overlapping(checks));
    AdamWScheduleFree& optimizer = *job.optimizer;
    GradScaler scaler(GradScalerOptions().init_scale(2));
    const std::vector<std::pair<const char*, std::function<void()>>> calls = {
        {"step() without a gradient", [&] { optimizer.step(); }},
        {"GradScaler::step()", [&] { scaler.step(optimizer); }},
        {"clip_grad_norm_()", [&] { clip_grad_norm_(optimizer, 1); }},
        {"clip_grad_value_()", [&] { clip_grad_value_(optimizer, 1); }},
        {"eval()", [&] { optimizer.eval(); }},
        {"train()", [&] { optimizer.train(); }},
        {"eval_scope()", [&] { const auto scope = optimizer.eval_scope(); }},
        {"grad_norm()", [&] { optimizer.grad_norm(); }},
        {"grad_norms()", [&] { optimizer.grad_norms(); }},
        {"full_state()", [&] { optimizer.full_state("y"); }},
        {"save_checkpoint()", [&] { optimizer.save_checkpoint(scratch / "step"); }},
        {"load_checkpoint()", [&] { optimizer.load_checkpoint(scratch / "step"); }},
        {"export_safetensors()", [&] { export_safetensors(optimizer, scratch / "y", "y"); }},
        {"import_safetensors()", [&] { import_safetensors(optimizer, scratch / "y"); }},
        {"reset_from_parameters()", [&] { optimizer.reset_from_parameters(); }},
        {"timing_report()", [&] { optimizer.timing_report(); }},
        {"update_batch_norm()",
            [&] {
              std::vector<at::Tensor> batches = {at::ones({3, 4})};
              update_batch_norm(*job.model, batches, *world());
            }},
        {"join()", [&] { optimizer.join(); }},
    };
    for (const auto& [name, call] : calls) {
      if (world()->size() == 1 && std::string(name) == "join()") continue;  // nobody to be joined
      if (!optimizer.training()) optimizer.train();
      EXPECT_EQ(job.waited_by(call), job.parameters.size()) << name;
      optimizer.zero_grad();
    }
    optimizer.train();
    EXPECT_EQ(job.waited_by([&] { job.replace(); }), job.parameters.size()) << "a successor";
    EXPECT_EQ(job.waited_by([&] { job.optimizer.reset(); }), job.parameters.size()) << "the end";
  }
}

// But for what check_ready hides, which backward is to see.
TEST(OverlapForwardEntries, TheFirstGradientOfABackwardWaits) {
  for (const bool checks : {false, true}) {
    Job job(overlapping(checks));
    EXPECT_EQ(job.waited_by([&] { job.backward(1); }), checks ? 0 : job.parameters.size());
    job.optimizer->step();
  }
}

// What a trainer does between step() and forward must not end the overlap.
TEST(OverlapForwardEntries, LocalCallsDoNotWait) {
  Job job(overlapping().max_grad_norm(1));
  AdamWScheduleFree& optimizer = *job.optimizer;
  EXPECT_EQ(job.waited_by([&] {
    optimizer.zero_grad();
    optimizer.step_weight(1);
    EXPECT_GT(optimizer.grad_norm(), 0);  // which clipping has made known
    EXPECT_EQ(optimizer.skipped_steps(), 0);
    EXPECT_GT(optimizer.timings().step, 0);
    EXPECT_GT(optimizer.state_bytes(), 0);
    EXPECT_TRUE(optimizer.training());
    const auto hold = optimizer.no_sync();
    job.backward(1);  // accumulates
  }),
      0U);
  job.step(2);
}

// The one in whose module a part is that another one trains.
TEST(OverlapForwardEntries, WhatAnotherOptimizerTrainsIsWaitedForToo) {
  const Scratch scratch;
  torch::nn::Sequential both(torch::nn::Linear(4, 5), torch::nn::Linear(5, 3));
  const auto log = std::make_shared<Log>();
  const auto communicator = std::make_shared<GatherLog>(world(), log);
  const ParameterGroup first(parameters_of(*both[0])), second(parameters_of(*both[1]));
  AdamWScheduleFree generator(*both, {first}, world(), {}, overlapping());
  AdamWScheduleFree critic(*both, {second}, communicator, {}, overlapping());
  for (const bool saves : {false, true}) {
    const NamedParameters trained = parameters_of(*both[1]);
    backward(trained, random_gradients(trained, 0, world()->rank()));
    critic.step();
    log->take();
    saves ? generator.save_checkpoint(scratch / "step") : generator.eval();
    EXPECT_EQ(log->take().size(), 2U);
    generator.train();
  }
}

TEST(OverlapForwardEntries, TheEndLeavesYInTheParameters) {
  for (const bool checks : {false, true}) {
    Job plain(buckets_of(1)), overlapped(overlapping(checks));
    for (Job* job : {&plain, &overlapped}) {
      job->step(0);
      job->replace(job == &plain ? buckets_of(1) : overlapping(checks));  // takes y for its z
      job->step(1);
      job->optimizer.reset();
    }
    for (size_t p = 0; p < plain.parameters.size(); ++p) {
      EXPECT_TRUE(same_bits(plain.parameters[p].second, overlapped.parameters[p].second)) << p;
    }
  }
}

TEST(OverlapForwardEntries, TimingsSayHowLongForwardWaited) {
  constexpr double kSeconds = 0.02;
  Job job(overlapping(), milliseconds(20));
  job.step(0);
  const Timings first = job.optimizer->timings();
  EXPECT_EQ(first.wait_ready, 0);
  EXPECT_LT(first.wait_all_gather, first.step);
  job.optimizer->ready(job.parameters[0].second);
  job.optimizer->ready(job.parameters[1].second);
  job.optimizer->train();  // for the other two
  job.step(1);
  const Timings second = job.optimizer->timings();
  EXPECT_GE(second.wait_ready, 4 * kSeconds);
  EXPECT_GE(second.wait_all_gather, second.wait_ready);
  EXPECT_GE(second.between_steps, second.wait_ready);
  EXPECT_LE(second.wait_ready + second.wait_between_steps, second.between_steps);
  const TimingReport report = job.optimizer->timing_report();
  EXPECT_GE(report.ranks.front().worst.wait_ready, 4 * kSeconds);
  // What all wait for is nobody's fault.
  const auto slow = report.straggler();
  EXPECT_TRUE(!slow || slow->seconds < 2 * kSeconds) << report.table();
  job.step(2);
  EXPECT_GE(job.optimizer->timings().wait_ready, 4 * kSeconds);  // in timing_report(), after the last step
}

// One that ends in an exception between step() and forward: the others hear of it from whatever they do next.
TEST(OverlapForwardEntries, ARankThatThrowsBeforeForwardIsToldByTheNextCall) {
  if (world()->size() == 1) return;
  const std::string who = "rank 0: an exception ended the scope of its optimizer";
  for (const bool by_ready : {false, true}) {
    // The gather of this bucket is never launched by rank 0, so that it is in flight until the others are told.
    bool dies = false;
    const int64_t never = by_ready ? 0 : 99;
    Job job(overlapping(), milliseconds(0), [&](int64_t bucket) {
      if (dies && world()->rank() == 0 && bucket == never) throw std::runtime_error("no more");
    });
    job.step(0);
    dies = true;
    if (world()->rank() == 0) {
      try {
        const auto goes = std::move(job.optimizer);
        job.backward(1);
        goes->step();
        throw std::runtime_error("no more");
      } catch (const std::exception& error) {
        EXPECT_EQ(detail::message_of(error), by_ready ? "rank 0: no more" : "no more");
      }
      world_barrier();
      continue;
    }
    job.backward(1);
    expect_error(
        [&] {
          job.optimizer->step();
          if (by_ready) job.optimizer->ready(*job.model);
          job.optimizer->eval();
        },
        {by_ready ? "rank 0: no more" : who});
    expect_error([&] { job.optimizer->step(); }, {"rank 0: "});
    const auto start = std::chrono::steady_clock::now();
    job.optimizer.reset();
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
    world_barrier();
  }
}

// Its own end in an exception, while gathers that it has launched itself cannot end: the others are not there yet.
TEST(OverlapForwardEntries, AnExceptionWithGathersInFlightEndsAtOnce) {
  if (world()->size() == 1) return;
  Job job;
  job.step(0);
  world_barrier();
  if (world()->rank() == 0) {
    const auto start = std::chrono::steady_clock::now();
    try {
      const auto goes = std::move(job.optimizer);
      job.backward(1);
      goes->step();
      throw std::runtime_error("in forward");
    } catch (const std::exception& error) {
      EXPECT_EQ(detail::message_of(error), "in forward");
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
    world_barrier();
    return;
  }
  job.backward(1);
  try {
    job.optimizer->step();
    job.optimizer->ready(*job.model);
    job.optimizer->eval();
    ADD_FAILURE();
  } catch (const std::exception& error) {
    EXPECT_NE(detail::message_of(error).find("rank 0: an exception ended"), std::string::npos)
        << detail::message_of(error);
  }
  job.optimizer.reset();
  world_barrier();
}

}  // namespace
}  // namespace zerosched::testing
