// The engine on a device: the bits of the CPU, on a fake one that runs streams in the worst order that events allow.
#include "engine/device_trainer.h"
#include "io/scratch.h"

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

#ifdef ZEROSCHED_TEST_NCCL

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
