// How much of the reduce-scatter is hidden, on a machine model: of a host that is a whole backward ahead.
#include "engine/passing_communicator.h"
#include "timeline/timed_training.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace zerosched::testing {
namespace {

// Launches are in the order of the first step from the second on; steps 1, 2, 3, 5, 9 look at the bits of all parameters.
constexpr int kSteps = 6;
constexpr int64_t kBuckets = 200;
constexpr int64_t kNumel = 1 << 20;  // of each, and the wire slow enough for the host to be ahead
constexpr double kSlowWire = 64;

/// As a design in which the host gives out buffers: it looks whether a reduce-scatter has ended, and what finds no buffer
/// in backward is packed in step(), in the stream that backward was in.
class HostLooks final : public PassingCommunicator {
 public:
  struct Backward {
    TimedRuntime& runtime;
    device::Stream stream;
    device::Event event;
    bool runs = false;
  };
  HostLooks(std::shared_ptr<Communicator> inner, Backward& backward)
      : PassingCommunicator(std::move(inner)), backward_(backward) {}
  std::shared_ptr<Communicator> duplicate() override {
    return std::make_shared<HostLooks>(inner().duplicate(), backward_);
  }

 private:
  void launching(Collective kind, const CollectiveLabel&) override {
    if (kind != Collective::reduce_scatter || backward_.runs) return;
    backward_.runtime.record(backward_.event, backward_.stream);
    backward_.runtime.wait(backward_.runtime.current_stream(0), backward_.event);
  }
  std::shared_ptr<Work> launched(
      Collective kind, const CollectiveLabel&, std::shared_ptr<Work> work) override {
    if (kind != Collective::reduce_scatter) return work;
    return std::make_shared<HostBlockingWork>(std::move(work));
  }

  Backward& backward_;
};

/// A model of 200 buckets on 8 GPUs, whose reduce-scatters take `share` of the time of backward.
StepTimes last_step(
    double share, int buffers, bool host_looks, std::optional<double> loss_scale = std::nullopt) {
  MachineModel machine = h100(8);
  machine.bus_bandwidth /= kSlowWire;
  const double reduce = machine.collective(2.0 * kNumel);
  TimedRuntime runtime(machine);
  TimedTraining::Options options;
  options.sharding.bucket_bytes(2 * kNumel).bucket_buffers(buffers);
  options.loss_scale = loss_scale;
  HostLooks::Backward backward{runtime, runtime.current_stream(0), runtime.create_event(0)};
  if (host_looks) {
    options.wrap = [&](auto inner) { return std::make_shared<HostLooks>(std::move(inner), backward); };
    options.in_backward = [&](bool runs) { backward.runs = runs; };
  }
  // The host takes far less than the device.
  options.operation_call = 1e-6;
  options.operations = 3;
  std::vector<ModelPart> parts(kBuckets);
  for (int64_t p = 0; p < kBuckets; ++p) {
    parts[static_cast<size_t>(p)] = {
        "layers." + std::to_string(p), kNumel, 0, machine.flops * reduce / share / 2};
  }
  TimedTraining training(runtime, parts, options);
  EXPECT_EQ(training.engine().state().layout().buckets.size(), static_cast<size_t>(kBuckets));
  StepTimes times;
  for (int step = 0; step < kSteps; ++step) times = training.step();
  EXPECT_LT(times.host, times.backward / 4) << "the host is to be ahead";
  return times;
}

double hidden_share(const StepTimes& times) {
  return 1 - times.reduce_scatter_exposed / times.reduce_scatter;
}

TEST(OverlapOnTimeline, ReducesBesideBackwardWithTheHostAhead) {
  for (const int buffers : {2, 3}) {
    EXPECT_GT(hidden_share(last_step(0.8, buffers, false)), 0.95) << buffers << " buffers";
  }
  EXPECT_EQ(last_step(0.8, 3, false).host_waits, 0);
}

TEST(OverlapOnTimeline, IsLostIfTheHostLooksForBuffers) {
  EXPECT_LT(hidden_share(last_step(0.8, 3, true)), 0.05);  // 3 of 200
}

// Backward is as slow as the wire then, and no slower: the wire is busy all the time.
TEST(OverlapOnTimeline, BackwardWaitsForBuffersWhereTheWireIsSlower) {
  const StepTimes times = last_step(2, 3, false);
  EXPECT_GT(times.reduce_scatter, 1.5 * times.backward);
  EXPECT_LT(times.seconds() - times.forward, 1.1 * (times.reduce_scatter + times.all_gather + times.update));
  EXPECT_EQ(times.host_waits, 0);
}

// Whether a gradient overflows is asked for in the next step, which the GPU has been given meanwhile.
TEST(OverlapOnTimeline, LossScalingLeavesNoGap) {
  const StepTimes plain = last_step(0.8, 3, false), scaled = last_step(0.8, 3, false, 1024);
  EXPECT_LE(scaled.host_waits, 1);
  EXPECT_LT(scaled.seconds(), 1.01 * plain.seconds());
}

TEST(OverlapOnTimeline, GradientsOfFewBucketsAreAlive) {
  const StepTimes times = last_step(0.8, 3, false);
  EXPECT_LE(times.gradient_bytes, 3 * 2 * kNumel);
}

}  // namespace
}  // namespace zerosched::testing
