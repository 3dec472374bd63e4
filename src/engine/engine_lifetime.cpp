// How an Engine is made, the same on all ranks, and how it ends.
#include "base/message_of.h"
#include "comm/agree.h"
#include "comm/member.h"
#include "engine/engine.h"
#include "engine/equal_on_ranks.h"
#include "engine/optimizer_name.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstring>
#include <exception>
#include <utility>

namespace zerosched::detail {

namespace {

// The same on every rank that constructs the same optimizers.
std::atomic<int> constructed{0};

}  // namespace

Engine::Engine(const Trainable& what, std::shared_ptr<Communicator> communicator,
    const torch::optim::OptimizerOptions& defaults, const ShardingOptions& sharding,
    std::unique_ptr<Algorithm> algorithm, const DeviceBackend& devices)
    : communicator_(std::move(communicator)),
      sharding_(sharding),
      exceptions_at_start_(std::uncaught_exceptions()) {
  const at::NoGradGuard no_grad;
  Model model;
  Layout layout;
  agree_on(*communicator_, [&] {
    check_options(what.groups(), defaults, sharding, *algorithm);
    model = inspect(what, *devices.runtime);
    ParameterClaim::check(model.parameters, model.names);
    const Wire wire = std::strcmp(communicator_->backend(), "nccl") == 0 ? Wire::nccl
                      : communicator_->host_count() > 1                  ? Wire::network
                                                                         : Wire::host;
    layout = make_layout(model.specs,
        {sharding.bucket_bytes().value_or(default_bucket_bytes(wire, communicator_->size())),
            sharding.first_bucket_bytes(), sharding.reduce_dtype().value_or(c10::ScalarType::Undefined)},
        communicator_->size());
  });
  check_same_on_all_ranks(*communicator_, describe(model, what.groups(), defaults, sharding, *algorithm));
  if (communicator_->size() > 1) {
    name_ = optimizer_name(algorithm->name(), ++constructed, model.names);
    set_owner(*communicator_, name_);
  }
  state_ = std::make_unique<OptimizerState>(
      communicator_, std::move(algorithm), std::move(model), std::move(layout), what.groups().size());
  tell_peers_outside_round([&] { make_parts(what, defaults, devices); });
}

void Engine::make_parts(
    const Trainable& what, const torch::optim::OptimizerOptions& defaults, const DeviceBackend& devices) {
  settle_others();
  const Model& model = state_->model();
  const Layout& layout = state_->layout();
  std::vector<at::Tensor> kept_equal = ParameterClaim::unclaimed(model.frozen);
  kept_equal.insert(kept_equal.end(), model.buffers.begin(), model.buffers.end());
  if (sharding_.broadcast_parameters()) {
    broadcast_values(*communicator_, kept_equal);
  } else {
    std::vector<at::Tensor> all = model.parameters;
    all.insert(all.end(), kept_equal.begin(), kept_equal.end());
    check_same_values(*communicator_, all);
  }
  claim_ = std::make_unique<ParameterClaim>(model.parameters, model.names,
      ParameterClaim::Owner{[this] { hand_over(); }, [this] { settle(); }, [this] { return is_at_x(); }});
  DeviceExecutor* on_device = nullptr;
  if (model.device.is_cuda()) {
    auto executor = std::make_unique<DeviceExecutor>(*devices.runtime, model.device.index());
    on_device = executor.get();
    state_->set_executor(std::move(executor));
  } else {
    state_->set_executor(std::make_unique<HostExecutor>());
  }
  Executor& executor = state_->executor();
  const auto use = executor.enter();
  std::vector<const torch::optim::OptimizerOptions*> options;
  for (const ParameterGroup& group : what.groups())
    options.push_back(group.has_options() ? &group.options() : &defaults);
  state_->allocate(options, sharding_.broadcast_parameters());
  steering_ = std::make_unique<Steering>(state_->algorithm(), options);
  DeviceKernels& kernels = devices.kernels == nullptr ? DeviceKernels::library() : *devices.kernels;
  std::unique_ptr<GradientPacker> packer;
  if (communicator_->size() > 1 && sharding_.gradients() == GradientInput::local) {
    packer = on_device == nullptr ? make_host_packer(layout, communicator_->rank())
                                  : make_device_packer(layout, *on_device, kernels);
  }
  reducer_ = std::make_unique<GradientReducer>(model.parameters, model.names, layout, communicator_,
      sharding_, executor, std::move(packer), steering_->count(), [this] { return own_report(); });
  const ShardParts parts{state_->algorithm(), layout, state_->groups().size(), communicator_->rank(),
      state_->parameters(), state_->shards(), *reducer_};
  if (on_device != nullptr) late_reports_ = std::make_unique<LateReports>(*on_device);
  updater_ = on_device == nullptr ? make_host_updater(parts)
                                  : make_device_updater(parts, *on_device, *communicator_, kernels,
                                        late_reports_->not_finite_flag());
  state_->set_updater(*updater_);
  if (sharding_.overlap_forward()) {
    gathers_ = std::make_unique<ParameterGathers>(
        model.parameters, state_->parameters(), layout, *communicator_, executor, sharding_.check_ready());
  }
  buffer_sync_ = std::make_unique<BufferSync>(model, *communicator_, executor, sharding_.broadcast_buffers());
  untrained_ = std::make_unique<Untrained>(what, model, *communicator_);
  register_hooks();
}

Engine::~Engine() {
  const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
  hooks_.clear();
  // In an exception ranks may have begun different collectives: none is waited for.
  const bool finishes = !unwinding || communicator_->size() == 1;
  finish_deciding(finishes);
  if (finishes) finish_in_flight();
  leave_ranks(unwinding);
  state_->parameters().release();
  try {
    state_->executor().leave();
  } catch (const std::exception& error) {
    TORCH_WARN("zerosched: the device failed before the optimizer was destroyed: ", message_of(error));
  }
}

}  // namespace zerosched::detail
