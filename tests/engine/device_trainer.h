#pragma once

#include "comm/mpi/mpi_backend.h"
#include "engine/device_training.h"
#include "fakes/fake_kernels.h"
#include "fakes/fake_runtime.h"
#include "io/checkpoint.h"
#include "support/world.h"

#ifdef ZEROSCHED_TEST_NCCL
#include "fakes/over_fake_nccl.h"
#endif

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace zerosched::testing {

inline constexpr int kMain = 0, kNccl = 1;  ///< streams in the order of their creation

/// How gradients travel: by a fake NCCL in stream order, or staged through the host and MPI.
enum class Transport { nccl, staged };

/// Hooks come in two streams by turns. Nothing but the engine orders those and the one that steps: gradients
/// do not depend on parameters.
class DeviceTrainer final : public Trainer {
 public:
  DeviceTrainer(FakeRuntime& runtime, Transport transport)
      : runtime_(runtime), kernels_(runtime), transport_(transport), main_(runtime.current_stream(0)) {}

  double watch_seconds = 0.005;
  const FakeKernels& kernels() const { return kernels_; }
  bool backward_is_beside = false;     ///< hooks come in the second stream only
  bool reads_in_both_streams = false;  ///< y of every other parameter in the second
  std::function<void(bool)> in_ready = [](bool) {};
  using Streams = std::vector<device::Stream>;
  std::function<void(int64_t step, size_t buckets, const Streams&)> at_step = [](int64_t, size_t,
                                                                                  const Streams&) {};
  std::function<std::shared_ptr<Communicator>(std::shared_ptr<Communicator>)> wrap =
      [](std::shared_ptr<Communicator> made) { return made; };
  std::function<void()> before_backward = [] {}, after_last_backward = [] {};
  std::function<void()> at_end = [] {};

 protected:
  std::shared_ptr<Communicator> communicator() override {
    std::shared_ptr<Communicator> made;
#ifdef ZEROSCHED_TEST_NCCL
    if (transport_ == Transport::nccl) made = over_fake_nccl(runtime_, watch_seconds);
#endif
    if (transport_ == Transport::staged) {
      detail::MpiOptions options;
      options.timeout_seconds = 20;
      options.runtime = &runtime_;
      made = detail::make_mpi_communicator(MPI_COMM_WORLD, options);
    }
    side_ = runtime_.create_stream(0);  // after the transport's
    return wrap(made);
  }

  detail::DeviceBackend backend() override { return {&runtime_, &kernels_}; }
  at::Tensor place(const at::Tensor& value) override { return runtime_.to_device(value.reshape({-1})); }
  at::Tensor to_host(const at::Tensor& tensor) override { return runtime_.to_host(tensor); }

  at::Tensor y_now() override {
    int64_t numel = 0;
    for (const auto& [name, parameter] : parameters_) numel += parameter.numel();
    at::Tensor all = runtime_.empty(numel, parameters_.front().second.scalar_type(), 0);
    int64_t begin = 0;
    for (size_t p = 0; p < parameters_.size(); ++p) {
      const at::Tensor& parameter = parameters_[p].second;
      if (reads_in_both_streams) runtime_.set_current_stream(p % 2 == 0 ? main_ : side_);
      ready(p);
      runtime_.assign(all.narrow(0, begin, parameter.numel()), parameter.detach().reshape({-1}));
      begin += parameter.numel();
    }
    if (reads_in_both_streams) {
      runtime_.set_current_stream(main_);
      runtime_.order(side_, main_);
    }
    return all;
  }

  void ready(size_t index) override {
    in_ready(!job().waits_by_train);
    Trainer::ready(index);
    in_ready(false);
  }

  at::Tensor make_gradient(const at::Tensor& value, int64_t parameter) override {
    runtime_.set_current_stream(parameter % 2 == 0 && !backward_is_beside ? main_ : side_);
    const at::Tensor flat = runtime_.empty(value.numel(), value.scalar_type(), 0);
    runtime_.copy(flat.data_ptr(), value.const_data_ptr(), static_cast<int64_t>(value.nbytes()),
        runtime_.current_stream(0));
    values_.push_back(value);
    return flat.view(value.sizes());
  }

  void begin_step(int64_t step) override {
    runtime_.set_current_stream(main_);
    at_step(step, engine().state().layout().buckets.size(), {main_, side_});
  }
  void begin_backward() override { before_backward(); }
  void after_backward() override { runtime_.order(side_, main_); }
  void end_backward() override {
    runtime_.set_current_stream(main_);
    after_last_backward();
  }
  void end() override {
    runtime_.set_current_stream(main_);
    at_end();
  }

 private:
  FakeRuntime& runtime_;
  FakeKernels kernels_;
  std::vector<at::Tensor> values_;  ///< until the streams have copied them
  Transport transport_;
  device::Stream main_, side_;
};

inline std::vector<Transport> transports() {
#ifdef ZEROSCHED_TEST_NCCL
  return {Transport::nccl, Transport::staged};
#else
  return {Transport::staged};
#endif
}

/// What src/io does to the state is done in the stream of whoever asks for it.
class Checkpointing {
 public:
  explicit Checkpointing(FakeRuntime& runtime) : runtime_(runtime), options_(0.01) {}

  /// Saves at the end, in another stream than the steps were in.
  void save(DeviceTrainer& trainer, const std::string& dir) {
    in_another_stream(trainer,
        [this, &trainer, dir] { detail::save_checkpoint(trainer.engine(), {&options_}, dir, {}, {}); });
  }
  void load(DeviceTrainer& trainer, const std::string& dir) {
    in_another_stream(
        trainer, [this, &trainer, dir] { detail::load_checkpoint(trainer.engine(), {&options_}, dir, {}); });
  }
  std::function<void(device::Stream)> on_stream = [](device::Stream) {};

 private:
  void in_another_stream(DeviceTrainer& trainer, std::function<void()> action) {
    trainer.at_end = [this, action = std::move(action)] {
      const device::Stream before = runtime_.current_stream(0);
      const device::Stream other = runtime_.create_stream(0);
      on_stream(other);
      runtime_.set_current_stream(other);
      action();
      runtime_.set_current_stream(before);
    };
  }

  FakeRuntime& runtime_;
  AdamWScheduleFreeOptions options_;
};

}  // namespace zerosched::testing
