// The engine on a GPU: the bits of the CPU, with hooks in two streams by turns.
#include "device/runtime.h"
#include "engine/device_training.h"
#include "io/checkpoint.h"
#include "io/scratch.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/nccl_communicator.h>

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

namespace zerosched {
namespace {

using testing::Job;
using testing::Outcome;

enum class Transport { host, nccl };

at::Device own_device() {
  return at::Device(
      at::kCUDA, static_cast<c10::DeviceIndex>(testing::world_rank() % device::cuda().device_count()));
}

// Notes the stream in which hooks of the same node come.
struct NoteStream final : torch::autograd::FunctionPostHook {
  explicit NoteStream(std::set<c10::StreamId>& streams) : streams(streams) {}
  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outputs, const torch::autograd::variable_list&) override {
    streams.insert(c10::cuda::getCurrentCUDAStream().id());
    return outputs;
  }
  std::set<c10::StreamId>& streams;
};

class GpuTrainer final : public testing::Trainer {
 public:
  explicit GpuTrainer(Transport transport)
      : transport_(transport), guard_(own_device()), side_(c10::cuda::getStreamFromPool()) {}

  size_t streams_of_hooks() const { return streams_of_hooks_.size(); }

 private:
  std::shared_ptr<Communicator> communicator() override {
    make_accumulators();
    return transport_ == Transport::nccl ? nccl_communicator(testing::world(), own_device(), 60)
                                         : testing::world()->duplicate();
  }
  at::Tensor place(const at::Tensor& value) override { return value.to(own_device()); }
  at::Tensor to_host(const at::Tensor& tensor) override { return tensor.cpu(); }
  // Backward runs in the stream of forward.
  std::shared_ptr<void> forward_of(int64_t parameter) override {
    if (parameter % 2 == 0) return nullptr;
    return std::make_shared<c10::cuda::CUDAStreamGuard>(side_);
  }
  at::Tensor make_gradient(const at::Tensor& value, int64_t) override { return value.to(own_device()); }

  // A hook comes in the stream that was current when the parameter's accumulator was made, which is when the engine is,
  // unless there is one already: of half of the parameters, made in the other stream.
  void make_accumulators() {
    for (size_t p = 0; p < parameters_.size(); ++p) {
      const auto of_forward = forward_of(static_cast<int64_t>(p));
      accumulators_.push_back(torch::autograd::impl::grad_accumulator(parameters_[p].second));
      accumulators_.back()->add_post_hook(std::make_unique<NoteStream>(streams_of_hooks_));
    }
  }

  Transport transport_;
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream side_;
  std::set<c10::StreamId> streams_of_hooks_;
  // LibTorch's versions differ in the kind of pointer.
  std::vector<decltype(torch::autograd::impl::grad_accumulator(std::declval<const at::Tensor&>()))>
      accumulators_;
};

std::vector<Transport> transports() {
  // Ranks may share a GPU over MPI only.
  if (device::cuda().device_count() < testing::world_size()) return {Transport::host};
  return {Transport::host, Transport::nccl};
}

// The norm is summed in another order than the CPU's, and so is what was clipped to it.
void expect_near(const Outcome& gpu, const Outcome& host) {
  ASSERT_EQ(gpu.norms.size(), host.norms.size());
  for (size_t i = 0; i < host.norms.size(); ++i) {
    if (std::isfinite(host.norms[i])) {
      EXPECT_NEAR(gpu.norms[i], host.norms[i], 1e-12 * host.norms[i]);
    } else {
      EXPECT_FALSE(std::isfinite(gpu.norms[i]));
    }
  }
}

TEST(EngineOnGpu, TrainsToTheBitsOfTheCpu) {
  auto& cuda = device::cuda();
  if (cuda.device_count() == 0) GTEST_SKIP() << cuda.why_no_device();
  cuda.prepare_tensors();
  const std::vector<Job> all = testing::jobs();
  for (size_t j = 0; j < all.size(); ++j) {
    const Outcome host = testing::on_host(all[j]);
    for (const Transport transport : transports()) {
      SCOPED_TRACE("job " + std::to_string(j) + (transport == Transport::nccl ? " nccl" : " host"));
      GpuTrainer trainer(transport);
      Outcome gpu = trainer.run(all[j]);
      EXPECT_EQ(trainer.streams_of_hooks(), 2);
      expect_near(gpu, host);
      if (all[j].max_grad_norm) {
        for (const auto& [name, y] : host.state.at("y")) {
          EXPECT_TRUE(at::allclose(gpu.state.at("y").at(name), y, 1e-6, 1e-7)) << name;
        }
        continue;
      }
      gpu.norms = host.norms;
      testing::expect_same_bits(gpu, host);
    }
  }
}

/// A few steps with forward and backward of elementwise operations, whose bits are those of any stream.
testing::State train_at_once_or_by_replays(bool replays) {
  const c10::cuda::CUDAGuard guard(own_device());
  NamedParameters parameters = testing::make_parameters({{500}, {500}});
  for (auto& [name, parameter] : parameters) {
    parameter = parameter.detach().to(own_device()).requires_grad_();
  }
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, testing::world()->duplicate(),
      AdamWScheduleFreeOptions(0.01), ShardingOptions().overlap_backward(false));
  const at::Tensor input = at::zeros_like(parameters[0].second.detach());
  const auto forward_and_backward = [&] {
    ((input * parameters[0].second).tanh() * parameters[1].second).square().sum().backward();
  };
  at::cuda::CUDAGraph graph;
  if (replays) {
    c10::cuda::getCurrentCUDAStream().synchronize();
    const c10::cuda::CUDAStreamGuard side(c10::cuda::getStreamFromPool());
    forward_and_backward();  // what allocates once has done so before the capture
    optimizer.zero_grad();
    graph.capture_begin();
    forward_and_backward();
    graph.capture_end();
    c10::cuda::getCurrentCUDAStream().synchronize();
  }
  for (int64_t step = 0; step < 4; ++step) {
    input.copy_(testing::random_like(at::zeros({500}), step, testing::world_rank(), 0));
    if (replays) {
      graph.replay();
    } else {
      optimizer.zero_grad();
      forward_and_backward();
    }
    optimizer.step();
  }
  return testing::full_state(optimizer);
}

TEST(EngineOnGpu, IsFiniteAgainOnceItsStateIsReplaced) {
  auto& cuda = device::cuda();
  if (cuda.device_count() == 0) GTEST_SKIP() << cuda.why_no_device();
  cuda.prepare_tensors();
  Job job;
  job.overflows = job.ignores = true;
  for (const Transport transport : transports()) {
    const testing::Scratch scratch;
    AdamWScheduleFree({ParameterGroup(testing::first_parameters())}, testing::world())
        .save_checkpoint(scratch / "good");
    GpuTrainer trainer(transport);
    AdamWScheduleFreeOptions options(0.01);
    trainer.before_it_goes = [&] {
      auto& engine = trainer.engine();
      engine.eval();
      EXPECT_FALSE(engine.state().is_finite());
      engine.train();
      detail::load_checkpoint(engine, {&options}, scratch / "good", {});
      engine.eval();
      EXPECT_TRUE(engine.state().is_finite());
      engine.train();
    };
    trainer.run(job);
  }
}

TEST(EngineOnGpu, ReplaysOfACapturedForwardAndBackwardTrainAlike) {
  auto& cuda = device::cuda();
  if (cuda.device_count() == 0) GTEST_SKIP() << cuda.why_no_device();
  cuda.prepare_tensors();
  testing::expect_same_bits(train_at_once_or_by_replays(true), train_at_once_or_by_replays(false));
}

}  // namespace
}  // namespace zerosched
