// Filling, gathering and replacing the sharded state: the parts of Engine that are not steps.
#include "comm/agree.h"
#include "engine/engine.h"
#include "engine/equal_on_ranks.h"
#include "kernels/kernels.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <utility>

namespace zerosched::detail {

void Engine::register_hooks() {
  hooks_.clear();
  hooks_.resize(model_.parameters.size());
  register_missing_hooks();
}

// A parameter that is frozen for a while has no accumulator then, and may have been when the others got their hooks.
// .grad is LibTorch's own in compatible mode: hooks only look there.
void Engine::register_missing_hooks() {
  if (sharding_.gradients() == GradientInput::already_averaged) return;
  const bool looks = !sharding_.overlap_backward();
  if (looks && (communicator_->size() == 1 || model_.device.is_cuda())) return;
  for (size_t p = 0; p < model_.parameters.size(); ++p) {
    if (hooks_[p] || !model_.parameters[p].requires_grad()) continue;
    hooks_[p].emplace(model_.parameters[p], [reducer = reducer_.get(), looks, p] {
      const auto parameter = static_cast<int64_t>(p);
      looks ? reducer->gradient_left(parameter) : reducer->gradient_ready(parameter);
    });
  }
}

void Engine::broadcast_parameters() {
  std::vector<at::Tensor> buffers;
  for (int64_t b = 0; b < static_cast<int64_t>(layout_.buckets.size()); ++b) {
    buffers.push_back(parameters_->buffer(b));
  }
  broadcast_values(*communicator_, buffers);
  parameters_->mark_written();
}

// Where x and y begin they stay: both are means of iterates, which every step keeps in the group's box.
void Engine::put_into_boxes() {
  for (size_t p = 0; p < model_.parameters.size(); ++p) {
    const ClampBounds& box = model_.clamps[static_cast<size_t>(model_.specs[p].group)];
    if (std::isinf(box.low) && std::isinf(box.high)) continue;
    executor_->clamp(model_.parameters[p].detach(), box.low, box.high);
  }
  parameters_->mark_written();
}

// What was saved without them, or with others.
void Engine::put_state_into_boxes() {
  for (size_t b = 0; b < state_.size(); ++b) {
    const ClampBounds& box = model_.clamps[static_cast<size_t>(layout_.buckets[b].group)];
    if (std::isinf(box.low) && std::isinf(box.high)) continue;
    for (size_t i = 0; i < algorithm_->state().size(); ++i) {
      if (algorithm_->state()[i].starts_at_parameters) executor_->clamp(state_[b][i], box.low, box.high);
    }
  }
}

void Engine::start_state_at_parameters() {
  for (size_t b = 0; b < state_.size(); ++b) {
    const at::Tensor slice = parameters_->slice(static_cast<int64_t>(b), communicator_->rank());
    for (size_t i = 0; i < algorithm_->state().size(); ++i) {
      if (algorithm_->state()[i].starts_at_parameters) executor_->assign(state_[b][i], slice);
    }
  }
}

void Engine::reset_from_parameters() {
  check();
  tell_peers_outside_round([&] {
    agree(*communicator_, why_not_replaceable());
    const at::NoGradGuard no_grad;
    const auto use = enter();
    parameters_->adopt();
    broadcast_parameters();
    put_into_boxes();
    broadcast_values(*communicator_, ParameterClaim::unclaimed(model_.frozen));
    broadcast_values(*communicator_, model_.buffers);
    start_state_at_parameters();
    for (GroupState& group : groups_) group.weight_sum = 0;
    finite_ = state_is_finite();
    // A parameter that went to another dtype or device and back has a new gradient accumulator.
    register_hooks();
  });
}

// On the CPU; on a device it is as finite as it was.
bool Engine::state_is_finite() const {
  if (!model_.device.is_cpu()) return finite_;
  for (const ShardState& state : state_) {
    for (const at::Tensor& tensor : state) {
      if (!tensor.defined()) continue;
      const double largest = kernels::max_abs(tensor.scalar_type(), tensor.const_data_ptr(), tensor.numel());
      if (!std::isfinite(largest)) return false;
    }
  }
  return true;
}

std::string Engine::why_not_savable() const {
  if (reducer_->in_flight()) return "gradient buckets are in flight: call step() or zero_grad() first.";
  if (reducer_->holds_accumulated()) {
    return "gradients of no_sync() passes wait for the backward that sends them, and would not be saved: "
           "call step() or "
           "zero_grad() first.";
  }
  return executor_->why_not_enterable();
}

std::string Engine::why_not_replaceable() const {
  if (reducer_->in_flight()) return "gradient buckets are in flight: call step() or zero_grad() first.";
  if (std::string why_not = executor_->why_not_enterable(); !why_not.empty()) return why_not;
  return parameters_->why_not_adoptable();
}

void Engine::state_was_replaced(std::vector<GroupState> groups, bool finite) {
  decide();
  groups_ = std::move(groups);
  finite_ = finite;
  last_values_.clear();
  first_k_ = groups_.front().k;
  has_grad_norm_ = false;
  const at::NoGradGuard no_grad;
  const auto use = enter();
  parameters_->adopt();
  put_state_into_boxes();
  write_point(training_ ? Point::y : Point::x);
  register_hooks();
}

at::Tensor Engine::gathered(int64_t bucket, Point point) {
  const at::NoGradGuard no_grad;
  return tell_peers_outside_round([&] {
    const auto use = enter();
    const Bucket& layout = layout_.buckets[static_cast<size_t>(bucket)];
    at::Tensor whole = executor_->empty(layout.numel(layout_.world_size), layout.dtype);
    write_shard(
        bucket, point, whole.narrow(0, communicator_->rank() * layout.shard_numel, layout.shard_numel));
    communicator_->all_gather(whole, {point == Point::x ? "x" : "y", bucket})->wait();
    return whole;
  });
}

int64_t Engine::state_bytes() const {
  int64_t bytes = 0;
  for (const ShardState& state : state_) {
    for (const at::Tensor& tensor : state) bytes += tensor.defined() ? tensor.nbytes() : 0;
  }
  return bytes;
}

TimingReport Engine::timing_report() {
  check();
  settle();
  const char* in_flight =
      "timing_report() with gradient buckets in flight: call step() or zero_grad() first.";
  agree(*communicator_, reducer_->in_flight() ? in_flight : "");
  return step_timings_.report(*communicator_);
}

std::map<std::string, at::Tensor> Engine::full_state(const std::string& which) {
  check();
  return tell_peers_outside_round([&] { return gathered_state(which); });
}

std::map<std::string, at::Tensor> Engine::gathered_state(const std::string& which) {
  const std::vector<StateTensor>& tensors = algorithm_->state();
  size_t index = 0;
  while (index < tensors.size() && tensors[index].name != which) ++index;
  const bool is_y = which == "y";
  std::string error;
  if (!is_y && index == tensors.size()) {
    error = "full_state(\"" + which + "\"): this optimizer has \"y\"";
    for (const StateTensor& tensor : tensors) error += ", \"" + tensor.name + "\"";
    error += ".";
  }
  if (reducer_->in_flight()) {
    error = "full_state() with gradient buckets in flight: call step() or zero_grad() first.";
  }
  if (error.empty()) error = executor_->why_not_enterable();
  agree(*communicator_, error);

  const at::NoGradGuard no_grad;
  const auto use = enter();
  std::map<std::string, at::Tensor> result;
  for (int64_t b = 0; b < static_cast<int64_t>(layout_.buckets.size()); ++b) {
    const Bucket& bucket = layout_.buckets[static_cast<size_t>(b)];
    at::Tensor whole;
    if (is_y) {
      whole = gathered(b, Point::y);
    } else {
      const at::Tensor& own = state(b, index);
      whole = executor_->empty(bucket.numel(layout_.world_size), own.scalar_type());
      executor_->assign(whole.narrow(0, communicator_->rank() * bucket.shard_numel, bucket.shard_numel), own);
      communicator_->all_gather(whole, {tensors[index].name.c_str(), b})->wait();
    }
    whole = executor_->to_host(whole);
    for (const Slot& slot : bucket.slots) {
      const ParameterSpec& spec = model_.specs[static_cast<size_t>(slot.parameter)];
      result[spec.name] =
          whole.as_strided(spec.sizes, spec.strides, slot.offset).clone(at::MemoryFormat::Contiguous);
    }
  }
  for (const ParameterSpec& spec : model_.specs) {
    if (spec.numel() > 0) continue;
    result[spec.name] = at::empty(spec.sizes, is_y ? spec.dtype : kernels::state_dtype(spec.dtype));
  }
  return result;
}

}  // namespace zerosched::detail
