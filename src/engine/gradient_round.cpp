// How a round of GradientReducer begins, and the ways in which it ends.
#include "engine/gradient_reducer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace zerosched::detail {

void GradientReducer::start_round() {
  first_hook_ = last_hook_;
  holds_last_round_ = false;
  for (ParameterState& state : states_) state.taken.reset();
  own_report_ = reporter_();
  own_report_.values_are_final = arrived_count_ == 0;
}

void GradientReducer::finish_round() {
  const std::lock_guard<std::mutex> lock(mutex_);
  backward_seconds_ = std::chrono::duration<double>(last_hook_ - first_hook_).count();
  if (gradients_.consumes() && !direct_ && !order_shared_) share_order();
  gradients_.drop_guards();
  reset_round();
  holds_last_round_ = true;
}

void GradientReducer::abandon_round() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t round = round_;
  reset_round();
  round_ = round;
}

void GradientReducer::cancel_round() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const int64_t bucket : order_) {
    if (bucket_state(bucket).work) wait_locked(bucket);
  }
  gradients_.drop_guards();
  for (ParameterState& state : states_) state.taken.reset();
  holds_last_round_ = false;
  reset_round();
}

void GradientReducer::reset_round() {
  for (size_t b = 0; b < buckets_.size(); ++b) {
    buckets_[b] = {};
    buckets_[b].remaining = static_cast<int64_t>(layout_.buckets[b].slots.size());
    buckets_[b].out.bucket = static_cast<int64_t>(b);
  }
  if (packer_) packer_->reset();
  for (ParameterState& state : states_) {
    at::Tensor taken = std::move(state.taken);
    state = {};
    state.taken = std::move(taken);  // grad_norm() may still ask for it
    if (state.taken.defined()) state.taken_version = state.taken._version();
  }
  edits_.clear();
  observed_order_.clear();
  arrived_count_ = 0;
  next_buffer_ = 0;
  next_launch_ = 0;
  closed_ = false;
  weight_.reset();
  joined_ = false;
  not_finite_parameter_ = -1;
  first_hook_ = last_hook_ = {};
  ++round_;
}

// Buckets that rank 0 did not see complete follow in bucket order.
void GradientReducer::share_order() {
  std::vector<int64_t> order = observed_order_;
  for (int64_t b = 0; b < static_cast<int64_t>(order_.size()); ++b) {
    if (std::find(order.begin(), order.end(), b) == order.end()) order.push_back(b);
  }
  at::Tensor shared = at::empty({static_cast<int64_t>(order.size())}, at::kLong);
  std::copy(order.begin(), order.end(), shared.mutable_data_ptr<int64_t>());
  communicator_->broadcast(shared, 0, {"bucket order", -1, round_})->wait();
  const int64_t* agreed = shared.const_data_ptr<int64_t>();
  set_order({agreed, agreed + shared.numel()});
  order_shared_ = true;
}

void GradientReducer::drop(bool set_to_none, bool everywhere) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const at::NoGradGuard no_grad;
  // Not only what this rank has launched: peers may have launched a bucket that this rank cannot complete.
  const bool may_be_in_flight = !direct_ && (everywhere || arrived_count_ > 0 || next_launch_ > 0);
  if (may_be_in_flight) {
    launch_missing_locked();
    for (const int64_t bucket : order_) wait_locked(bucket);
    communicator_->barrier({"zero_grad", -1, round_})->wait();
  }
  gradients_.drop(set_to_none);
  for (ParameterState& state : states_) state.taken.reset();
  holds_last_round_ = false;
  stray_.clear();
  const int64_t round = round_;
  const auto weight = weight_;
  reset_round();
  see_gradients();
  if (may_be_in_flight) return;
  // A local drop must leave the numbering of rounds alone, since peers may have dropped nothing, and a weight that was
  // given for the step to come.
  round_ = round;
  weight_ = weight;
}

}  // namespace zerosched::detail
