// The engine on a device: the bits of the CPU, on a fake one that runs streams in the worst order that events allow.
#include "comm/errors.h"
#include "engine/device_trainer.h"
#include "io/scratch.h"

#include <limits>

namespace zerosched::testing {
namespace {

TEST(EngineOnDevice, TrainsToTheBitsOfTheCpu) {
  const std::vector<Job> all = jobs();
  for (size_t j = 0; j < all.size(); ++j) {
    const Outcome host = on_host(all[j]);
    for (const Transport transport : transports()) {
      for (uint64_t seed = 0; seed < 3; ++seed) {
        SCOPED_TRACE("job " + std::to_string(j) + (transport == Transport::nccl ? " nccl" : " staged") +
                     ", seed " + std::to_string(seed));
        FakeRuntime runtime(1, seed);
        expect_same_bits(DeviceTrainer(runtime, transport).run(all[j]), host);
      }
    }
  }
}

TEST(EngineOnDevice, OverlappingForwardChangesNoBits) {
  for (Job job : jobs()) {
    if (!job.overlaps_forward) continue;
    const Outcome overlapping = on_host(job);
    for (const Transport transport : transports()) {
      for (uint64_t seed = 0; seed < 3; ++seed) {
        FakeRuntime runtime(1, seed);
        DeviceTrainer trainer(runtime, transport);
        // Each has to wait, also for what the other has waited for.
        trainer.reads_in_both_streams = true;
        trainer.at_step = [&](int64_t step, size_t, const DeviceTrainer::Streams& streams) {
          if (step == 0) runtime.order(streams[0], streams[1]);  // that the optimizer was constructed in
        };
        trainer.before_it_goes = [&] { trainer.reads_in_both_streams = false; };
        expect_same_bits(trainer.run(job), overlapping);
      }
    }
    job.overlaps_forward = job.checks_ready = false;
    expect_same_bits(overlapping, on_host(job));
  }
}

// Each parameter is a bucket, so that no other's ready() is its own.
TEST(EngineOnDevice, AForgottenReadyReadsNaN) {
  Job job;
  job.bucket_bytes = 1;
  const Outcome right = on_host(job);
  job.overlaps_forward = job.checks_ready = true;
  job.forgets_ready = 2;
  const auto expect_nan = [&](const Outcome& outcome) {
    EXPECT_TRUE(
        same_bits(outcome.y_at_start.front(), right.y_at_start.front()));  // no step, nothing is on its way
    for (size_t step = 1; step < right.y_at_start.size(); ++step) {
      at::Tensor expected = right.y_at_start[step].clone();
      const auto& shapes = job.shapes;
      const int64_t begin = shapes[0][0] + shapes[1][0] * shapes[1][1];
      expected.narrow(0, begin, shapes[2][0]).fill_(std::numeric_limits<double>::quiet_NaN());
      EXPECT_TRUE(at::allclose(outcome.y_at_start[step], expected, 0, 0, /*equal_nan=*/true));
    }
    expect_same_bits(outcome.state, right.state);
  };
  expect_nan(on_host(job));
  for (const Transport transport : transports()) {
    FakeRuntime runtime;
    expect_nan(DeviceTrainer(runtime, transport).run(job));
  }
}

// Whatever the number of buckets, one launch goes over the gradients of all.
TEST(EngineOnDevice, NormsTakeOneLaunchForAllBuckets) {
  const auto calls_of = [](const Job& job) {
    FakeRuntime runtime;
    DeviceTrainer trainer(runtime, Transport::staged);
    size_t buckets = 0;
    trainer.at_step = [&](int64_t, size_t count, const DeviceTrainer::Streams&) { buckets = count; };
    trainer.at_end = [&] { EXPECT_EQ(trainer.engine().grad_norms().size(), 6U); };
    trainer.run(job);
    EXPECT_GT(buckets, 2U);
    return trainer.kernels().calls;
  };
  Job clips;
  clips.max_grad_norm = 1;
  auto calls = calls_of(clips);
  EXPECT_EQ(calls["sum_of_squares"], clips.steps);
  EXPECT_EQ(calls["gradient_norm"], clips.steps);
  EXPECT_EQ(calls["squares_by_parameter"], 1);
  Job by_function;
  by_function.clips_by_function = by_function.clips_values = true;
  by_function.overlaps = false;
  calls = calls_of(by_function);
  EXPECT_EQ(calls["clamp_gradient"], by_function.steps);
  EXPECT_EQ(calls["sum_of_squares"], by_function.steps);
}

// What the host learns of a step once the device has made it is told at the latest by the evaluation that follows.
TEST(EngineOnDevice, WhatIsLearntLateIsTold) {
  Job not_finite, clipped, differs;
  not_finite.overflows = clipped.overflows = true;
  clipped.max_grad_norm = 1;
  differs.lr_differs = true;
  const std::vector<std::pair<Job, std::string>> jobs = {{not_finite, "inf or a NaN in step 2"},
      {clipped, "inf or a NaN in step 2"}, {differs, "lr of parameter group 0 is 0.02"}};
  for (const auto& [job, text] : jobs) {
    if (job.lr_differs && world_size() == 1) continue;
    expect_error([job = job] { on_host(job); }, {job.lr_differs ? text : "an inf or a NaN in step 2"});
    for (const Transport transport : transports()) {
      FakeRuntime runtime;
      DeviceTrainer trainer(runtime, transport);
      trainer.before_it_goes = [&] { trainer.engine().eval(); };
      expect_error([&, job = job] { trainer.run(job); }, {text});
    }
  }
}

// Alone, the first hook of the next step asks what became of the one before, to know which bits to expect.
TEST(EngineOnDevice, SkipsAndGoesOn) {
  Job job;
  job.overflows = job.skips = true;
  const Outcome host = on_host(job);
  for (const Transport transport : transports()) {
    FakeRuntime runtime;
    DeviceTrainer trainer(runtime, transport);
    trainer.before_it_goes = [&] { EXPECT_EQ(trainer.engine().skipped_steps(), 1); };
    expect_same_bits(trainer.run(job), host);
  }
}

// The flag that kernels have set is the state's that is gone, and so is what steps under way have yet to tell.
TEST(EngineOnDevice, IsFiniteAgainOnceItsStateIsReplaced) {
  Job job;
  job.overflows = job.ignores = true;
  for (const Transport transport : transports()) {
    for (const bool knows : {false, true}) {
      const Scratch scratch;
      AdamWScheduleFree({ParameterGroup(first_parameters())}, world()).save_checkpoint(scratch / "good");
      FakeRuntime runtime;
      DeviceTrainer trainer(runtime, transport);
      AdamWScheduleFreeOptions options(0.01);
      trainer.at_end = [&] {
        auto& engine = trainer.engine();
        if (knows) {
          engine.eval();
          EXPECT_FALSE(engine.state().is_finite());
          engine.train();
          engine.reset_from_parameters();
          EXPECT_FALSE(engine.state().is_finite()) << "v is what it was";
        }
        detail::load_checkpoint(engine, {&options}, scratch / "good", {});
        engine.eval();
        EXPECT_TRUE(engine.state().is_finite());
        engine.train();
      };
      trainer.run(job);
    }
  }
}

constexpr const char* kWhatToCapture =
    "capture forward and backward alone, with ShardingOptions().overlap_backward(false)";

TEST(EngineOnDevice, RefusesToBecomePartOfAGraph) {
  const Job job;
  const Outcome host = on_host(job);
  for (const Transport transport : transports()) {
    const testing::Scratch scratch;
    FakeRuntime runtime;
    DeviceTrainer trainer(runtime, transport);
    trainer.at_step = [&](int64_t step, size_t, const DeviceTrainer::Streams& streams) {
      if (step != 1) return;
      AdamWScheduleFreeOptions options(0.01);
      runtime.set_capturing(streams[0], true);
      const std::vector<std::function<void()>> calls = {[&] { trainer.engine().eval(); },
          [&] { trainer.engine().full_state("z"); }, [&] { trainer.engine().grad_norm(); },
          [&] { trainer.engine().grad_norms(); }, [&] { trainer.engine().reset_from_parameters(); },
          [&] { detail::save_checkpoint(trainer.engine(), {&options}, scratch / "step", {}, {}); }};
      for (const auto& call : calls) testing::expect_error(call, {kWhatToCapture});
      runtime.set_capturing(streams[0], false);
    };
    testing::expect_same_bits(trainer.run(job), host);
  }
}

TEST(EngineOnDevice, ReadyRefusesToBecomePartOfAGraph) {
  Job job;
  const Outcome host = on_host(job);
  job.overlaps_forward = true;
  for (const bool checks : {false, true}) {
    job.checks_ready = checks;
    FakeRuntime runtime;
    DeviceTrainer trainer(runtime, transports().front());
    trainer.at_step = [&](int64_t step, size_t, const DeviceTrainer::Streams& streams) {
      if (step == 0) return;
      runtime.set_capturing(streams[0], true);
      testing::expect_error([&] { trainer.engine().ready(at::TensorList()); }, {kWhatToCapture});
      runtime.set_capturing(streams[0], false);
    };
    testing::expect_same_bits(trainer.run(job), host);
  }
}

// Nothing is thrown through backward: the next call into the library says it, on every rank.
TEST(EngineOnDevice, AHookThatIsCapturedIsAnErrorOfTheNextCall) {
  for (const Transport transport : transports()) {
    FakeRuntime runtime;
    DeviceTrainer trainer(runtime, transport);
    trainer.at_step = [&](int64_t step, size_t, const DeviceTrainer::Streams& streams) {
      if (step == 1 && testing::world_rank() == 0) runtime.set_capturing(streams[1], true);  // of hooks alone
    };
    testing::expect_error([&] { trainer.run(Job()); },
        {"rank 0: the current stream of cuda:0 is being captured", kWhatToCapture});
  }
}

TEST(EngineOnDevice, CheckpointsHoldAndBringBackTheLastStep) {
  Job job, shorter;
  shorter.steps = 1;
  for (const Transport transport : transports()) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      SCOPED_TRACE(
          std::string(transport == Transport::nccl ? "nccl" : "staged") + ", seed " + std::to_string(seed));
      const Scratch scratch;
      FakeRuntime runtime(1, seed);
      Checkpointing checkpointing(runtime);
      Outcome saved;
      {
        DeviceTrainer trainer(runtime, transport);
        checkpointing.save(trainer, scratch / "step");
        saved = trainer.run(job);
      }
      AdamWScheduleFree host({ParameterGroup(first_parameters())}, world());
      host.load_checkpoint(scratch / "step");
      expect_same_bits(full_state(host), saved.state);
      DeviceTrainer trainer(runtime, transport);
      checkpointing.load(trainer, scratch / "step");
      const Outcome loaded = trainer.run(shorter);
      expect_same_bits(loaded.state, saved.state);
      EXPECT_TRUE(same_bits(loaded.y_at_end, saved.y_at_end));
    }
  }
}

// Whoever asks for the outcome of a step, at once, later or never: the steps are the same.
TEST(EngineOnDevice, AnOutcomeMayBeAskedForAtAnyTime) {
  using Kind = detail::StepOutcome::Kind;
  Job job;
  job.loss_scaling = job.overflows = true;
  job.asks_norms = false;
  const Outcome host = on_host(job);
  const std::vector<Kind> kinds = {Kind::taken, Kind::skipped, Kind::taken};
  for (const Transport transport : transports()) {
    for (const bool asks : {false, true}) {
      FakeRuntime runtime;
      DeviceTrainer trainer(runtime, transport);
      std::vector<Kind> found;
      trainer.after_scaled_step = [&](const auto& outcome) {
        if (asks) found.push_back(outcome->get());
      };
      trainer.at_end = [&] { EXPECT_EQ(trainer.engine().skipped_steps(), 1); };
      expect_same_bits(trainer.run(job), host);
      EXPECT_EQ(found, asks ? kinds : std::vector<Kind>());
    }
  }
}

#ifdef ZEROSCHED_TEST_NCCL

// But in steps that compare bits, as the first three do.
TEST(EngineOnDevice, AnOutcomeIsNotWaitedFor) {
  using Kind = detail::StepOutcome::Kind;
  Job job;
  job.loss_scaling = job.overflows = true;
  job.asks_norms = false;
  job.steps = 4;
  FakeRuntime runtime;
  DeviceTrainer trainer(runtime, Transport::nccl);
  bool held = false;
  trainer.at_step = [&](int64_t step, size_t, const DeviceTrainer::Streams& streams) {
    held = step == 3;
    if (!held) return;
    runtime.synchronize(streams.front());  // the outcome of the step before is waited for
    runtime.hold_stream(kMain);
  };
  trainer.after_scaled_step = [&](const auto& outcome) {
    if (held) {
      EXPECT_EQ(outcome->kind, Kind::undecided);
    }
    runtime.hold_stream(-1);
  };
  expect_same_bits(trainer.run(job), on_host(job));
}

// Whoever asks once the optimizer is gone is told what became of the step.
TEST(EngineOnDevice, AnOutcomeOutlivesItsOptimizer) {
  using Kind = detail::StepOutcome::Kind;
  Job job;
  job.loss_scaling = true;
  job.asks_norms = false;
  FakeRuntime runtime;
  std::shared_ptr<detail::StepOutcome> last;
  {
    DeviceTrainer trainer(runtime, Transport::nccl);
    trainer.after_scaled_step = [&](const auto& outcome) {
      last = outcome;
      throw std::runtime_error("trained enough");
    };
    EXPECT_THROW(trainer.run(job), std::runtime_error);
    EXPECT_EQ(last->kind, Kind::undecided);
  }
  EXPECT_EQ(last->get(), Kind::taken);
}

// Whose step the others do not make has parameters that are not whole, and must not end well.
TEST(EngineOnDevice, AStepOfOneRankAloneFailsTheJobThoughNobodyLooks) {
  if (world()->size() == 1) return;
  Job job;
  job.steps = world()->rank() == 0 ? 2 : 1;
  FakeRuntime runtime;
  {
    DeviceTrainer trainer(runtime, Transport::nccl);
    trainer.at_end = [] { throw std::runtime_error("trained enough"); };
    EXPECT_ANY_THROW(trainer.run(job));
  }
  const auto& family = dynamic_cast<const detail::MpiCommunicator&>(*world());
  wait_until([&] { return !family.family_failure().empty(); });
  EXPECT_NE(family.family_failure().find("after 1 steps; every rank must make the same number of steps"),
      std::string::npos)
      << family.family_failure();
  world_barrier();
  forget_world();
}

// What waits on the host for the device has a way out.
TEST(EngineOnDevice, ANormThatNeverComesIsGivenUpWithTheCommunicator) {
  Job job;
  job.max_grad_norm = 1;
  job.steps = 1;
  FakeRuntime runtime;
  DeviceTrainer trainer(runtime, Transport::nccl);
  std::thread peer;
  trainer.at_end = [&] {
    runtime.hold_stream(kNccl);
    peer = std::thread([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      trainer.engine().communicator()->abort("enough");
    });
  };
  expect_error([&] { trainer.run(job); }, {"enough"});
  runtime.hold_stream(-1);
  peer.join();
}

#endif

}  // namespace
}  // namespace zerosched::testing
