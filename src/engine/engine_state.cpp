// What Engine does with its state between steps, and with the hooks that a new one needs.
#include "comm/agree.h"
#include "engine/engine.h"

#include <ATen/core/grad_mode.h>

#include <utility>

namespace zerosched::detail {

void Engine::register_hooks() {
  hooks_.clear();
  hooks_.resize(state_->model().parameters.size());
  register_missing_hooks();
}

// A parameter that is frozen for a while has no accumulator then, and may have been when the others got their hooks.
// .grad is LibTorch's own in compatible mode: hooks only look there.
void Engine::register_missing_hooks() {
  if (sharding_.gradients() == GradientInput::already_averaged) return;
  const bool looks = !sharding_.overlap_backward();
  if (looks && (communicator_->size() == 1 || state_->model().device.is_cuda())) return;
  for (size_t p = 0; p < state_->model().parameters.size(); ++p) {
    if (hooks_[p] || !state_->model().parameters[p].requires_grad()) continue;
    hooks_[p].emplace(state_->model().parameters[p], [reducer = reducer_.get(), looks, p] {
      const auto parameter = static_cast<int64_t>(p);
      looks ? reducer->gradient_left(parameter) : reducer->gradient_ready(parameter);
    });
  }
}

void Engine::reset_from_parameters() {
  check();
  tell_peers_outside_round([&] {
    agree(*communicator_, why_not_replaceable());
    const at::NoGradGuard no_grad;
    const auto use = enter();
    forget_late_reports();
    state_->restart_at_parameters();
    // A parameter that went to another dtype or device and back has a new gradient accumulator.
    register_hooks();
  });
}

std::string Engine::why_not_savable() const {
  if (reducer_->in_flight()) return "gradient buckets are in flight: call step() or zero_grad() first.";
  if (reducer_->holds_accumulated()) {
    return "gradients of no_sync() passes wait for the backward that sends them, and would not be saved: "
           "call step() or "
           "zero_grad() first.";
  }
  return state_->executor().why_not_enterable();
}

std::string Engine::why_not_replaceable() const {
  if (reducer_->in_flight()) return "gradient buckets are in flight: call step() or zero_grad() first.";
  if (std::string why_not = state_->executor().why_not_enterable(); !why_not.empty()) return why_not;
  return state_->parameters().why_not_adoptable();
}

void Engine::state_was_replaced(std::vector<GroupState> groups, bool is_finite) {
  decide();
  last_values_.clear();
  first_k_ = groups.front().k;
  first_skipped_ = skipped_steps_;
  has_grad_norm_ = false;
  const at::NoGradGuard no_grad;
  const auto use = enter();
  forget_late_reports();
  state_->replaced(std::move(groups), is_finite, training_ ? Point::y : Point::x);
  register_hooks();
}

at::Tensor Engine::gathered(int64_t bucket, Point point) {
  const at::NoGradGuard no_grad;
  return tell_peers_outside_round([&] {
    const auto use = enter();
    return state_->gathered(bucket, point);
  });
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
  return tell_peers_outside_round([&] {
    std::string error = state_->why_not_whole(which);
    if (reducer_->in_flight()) {
      error = "full_state() with gradient buckets in flight: call step() or zero_grad() first.";
    }
    if (error.empty()) error = state_->executor().why_not_enterable();
    agree(*communicator_, error);
    const at::NoGradGuard no_grad;
    const auto use = enter();
    return state_->whole(which);
  });
}

}  // namespace zerosched::detail
