#include "engine/gradient_reducer.h"
#include "comm/message_of.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

namespace zerosched::detail {

GradientReducer::GradientReducer(std::vector<at::Tensor> parameters, std::vector<std::string> names,
    const Layout& layout, std::shared_ptr<Communicator> communicator, const ShardingOptions& options,
    Executor& executor)
    : parameters_(std::move(parameters)),
      names_(std::move(names)),
      layout_(layout),
      communicator_(std::move(communicator)),
      executor_(executor),
      averaged_already_(options.gradients() == GradientInput::already_averaged),
      direct_(averaged_already_ || layout.world_size == 1),
      consume_gradients_(options.overlap_backward() && !averaged_already_),
      pool_(layout, direct_ ? 0 : options.bucket_buffers(), *communicator_, executor.device()),
      shards_(layout.buckets.size()),
      states_(parameters_.size()),
      used_(parameters_.size()),
      buckets_(layout.buckets.size()),
      order_(layout.buckets.size()) {
  for (size_t b = 0; b < shards_.size() && !direct_; ++b) {
    const Bucket& bucket = layout.buckets[b];
    shards_[b] = executor_.empty(bucket.gradient_slice_numel(), bucket.reduce_dtype);
  }
  std::iota(order_.begin(), order_.end(), int64_t{0});
  reset_round();
}

void GradientReducer::gradient_ready(int64_t parameter) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.empty()) return;
  try {
    const at::NoGradGuard no_grad;
    const auto use = executor_.enter();
    handle(parameter);
  } catch (const std::exception& error) {
    error_ = "rank " + std::to_string(communicator_->rank()) + ": " + message_of(error);
  }
  if (!error_.empty()) communicator_->abort(error_);
}

void GradientReducer::handle(int64_t parameter) {
  if (!training_) {
    if (stray_.empty()) {
      stray_ = "a gradient of parameter '" + names_[static_cast<size_t>(parameter)] +
               "' arrived in eval mode, taken at x where it does not belong. Call zero_grad() to drop it, "
               "and train() before forward and backward.";
    }
    return;
  }
  if (no_sync_ > 0) {
    accumulate(parameter);
    return;
  }
  const int64_t bucket = layout_.place_of[static_cast<size_t>(parameter)].bucket;
  if (bucket < 0) return;
  ParameterState& state = parameter_state(parameter);
  TORCH_CHECK(!state.arrived, "the gradient of parameter '", names_[static_cast<size_t>(parameter)],
      "' arrived twice in one step. Use no_sync() around all but the last backward to accumulate, call "
      "zero_grad() to drop the first, or construct the optimizer with "
      "ShardingOptions().overlap_backward(false) if several backward passes per step are meant.");
  last_hook_ = std::chrono::steady_clock::now();
  if (arrived_count_++ == 0) start_round();
  state.arrived = true;
  if (direct_) {
    state.taken = take_gradient(parameter);
    return;
  }
  BucketState& arrived_in = bucket_state(bucket);
  if (arrived_in.buffer >= 0) {
    move(parameter);
  } else {
    state.waiting = has_gradient(parameter);
  }
  if (--arrived_in.remaining == 0) observed_order_.push_back(bucket);
  pump();
}

void GradientReducer::start_round() {
  first_hook_ = last_hook_;
  holds_last_round_ = false;
  for (ParameterState& state : states_) state.taken.reset();
}

// Moves what can be moved without waiting: buffers of finished buckets to the next in order, their waiting
// gradients into them, and complete buckets onto the wire.
void GradientReducer::pump() {
  release_finished();
  for (; next_buffer_ < order_.size(); ++next_buffer_) {
    const int64_t bucket = order_[next_buffer_];
    const int buffer = pool_.take(layout_of(bucket));
    if (buffer < 0) break;
    give_buffer(bucket, buffer);
  }
  while (next_launch_ < next_buffer_ && bucket_state(order_[next_launch_]).remaining == 0) {
    launch(order_[next_launch_]);
  }
}

// Rule 2. The host looks: a stream that waited here would keep backward waiting with it.
void GradientReducer::release_finished() {
  for (BucketState& bucket : buckets_) {
    if (bucket.launched && bucket.buffer >= 0 && bucket.work->done()) release(bucket);
  }
}

void GradientReducer::release(BucketState& bucket) {
  pool_.give_back(bucket.buffer);
  bucket.buffer = -1;
}

void GradientReducer::give_buffer(int64_t bucket, int buffer) {
  bucket_state(bucket).buffer = buffer;
  for (const Slot& slot : layout_of(bucket).slots) {
    if (parameter_state(slot.parameter).arrived) move(slot.parameter);
  }
}

at::Tensor GradientReducer::buffer_of(int64_t bucket) const {
  return pool_.view(buckets_[static_cast<size_t>(bucket)].buffer, layout_of(bucket));
}

// The bucket is order_[next_launch_] and has a buffer.
void GradientReducer::launch(int64_t bucket) {
  const at::Tensor buffer = buffer_of(bucket);
  zero_what_is_absent(bucket, buffer);
  write_flags(bucket, buffer);
  BucketState& state = bucket_state(bucket);
  state.work = communicator_->reduce_scatter(
      buffer, shards_[static_cast<size_t>(bucket)], {"gradients", bucket, round_});
  state.launched = true;
  ++next_launch_;
}

void GradientReducer::launch_missing() {
  const std::lock_guard<std::mutex> lock(mutex_);
  launch_missing_locked();
}

void GradientReducer::launch_missing_locked() {
  const at::NoGradGuard no_grad;
  if (arrived_count_ == 0) start_round();
  if (averaged_already_) check_averaged();
  if (direct_) {
    for (size_t p = 0; p < parameters_.size(); ++p) {
      if (!states_[p].arrived) states_[p].taken = take_gradient(static_cast<int64_t>(p));
    }
    return;
  }
  while (next_launch_ < order_.size()) {
    pump();
    if (next_launch_ == order_.size()) break;
    const int64_t bucket = order_[next_launch_];
    if (bucket_state(bucket).buffer < 0) {
      // All buffers are in flight, so some earlier bucket still holds one: wait for the first such.
      const auto holder = std::find_if(order_.begin(), order_.end(),
          [this](int64_t b) { return bucket_state(b).launched && bucket_state(b).buffer >= 0; });
      TORCH_INTERNAL_ASSERT(holder != order_.end());
      bucket_state(*holder).work->wait();  // rule 2
      release(bucket_state(*holder));
      continue;
    }
    for (const Slot& slot : layout_of(bucket).slots) {
      if (!parameter_state(slot.parameter).arrived && has_gradient(slot.parameter)) move(slot.parameter);
    }
    launch(bucket);
  }
}

void GradientReducer::wait(int64_t bucket) {
  if (!direct_) bucket_state(bucket).work->wait();  // rule 3
}

void GradientReducer::finish_round() {
  const std::lock_guard<std::mutex> lock(mutex_);
  backward_seconds_ = std::chrono::duration<double>(last_hook_ - first_hook_).count();
  if (consume_gradients_ && !direct_ && !order_shared_) share_order();
  reset_round();
  holds_last_round_ = true;
}

void GradientReducer::reset_round() {
  for (size_t b = 0; b < buckets_.size(); ++b) {
    BucketState& bucket = buckets_[b];
    if (bucket.buffer >= 0) release(bucket);
    bucket = {};
    bucket.remaining = static_cast<int64_t>(layout_.buckets[b].slots.size());
  }
  for (ParameterState& state : states_) {
    at::Tensor taken = std::move(state.taken);
    state = {};
    state.taken = std::move(taken);  // grad_norm() may still ask for it
    if (state.taken.defined()) state.taken_version = state.taken._version();
  }
  observed_order_.clear();
  arrived_count_ = 0;
  next_buffer_ = 0;
  next_launch_ = 0;
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
  order_.assign(agreed, agreed + shared.numel());
  order_shared_ = true;
}

void GradientReducer::drop(bool set_to_none) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const at::NoGradGuard no_grad;
  // Not only what this rank has launched: peers may have launched a bucket that this rank cannot complete.
  const bool may_be_in_flight = !direct_ && (arrived_count_ > 0 || next_launch_ > 0);
  if (may_be_in_flight) {
    launch_missing_locked();
    for (const BucketState& bucket : buckets_) bucket.work->wait();
    communicator_->barrier({"zero_grad", -1, round_})->wait();
  }
  for (const at::Tensor& parameter : parameters_) {
    at::Tensor& gradient = parameter.mutable_grad();
    if (!gradient.defined()) continue;
    if (set_to_none || consume_gradients_) {
      gradient.reset();
    } else {
      gradient = gradient.detach();
      executor_.fill(gradient, 0);
    }
  }
  for (ParameterState& state : states_) state.taken.reset();
  holds_last_round_ = false;
  stray_.clear();
  const int64_t round = round_;
  reset_round();
  // A local drop must leave the numbering of rounds alone: peers may have dropped nothing.
  if (!may_be_in_flight) round_ = round;
}

void GradientReducer::set_training(bool training) {
  const std::lock_guard<std::mutex> lock(mutex_);
  training_ = training;
}

void GradientReducer::enter_no_sync() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++no_sync_;
}

void GradientReducer::leave_no_sync() {
  const std::lock_guard<std::mutex> lock(mutex_);
  --no_sync_;
}

std::string GradientReducer::stray() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stray_;
}

bool GradientReducer::in_flight() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return arrived_count_ > 0 || next_launch_ > 0;
}

bool GradientReducer::holds_last_round() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return holds_last_round_ && std::all_of(states_.begin(), states_.end(), [](const ParameterState& state) {
    return !state.taken.defined() || state.taken._version() == state.taken_version;
  });
}

double GradientReducer::backward_seconds() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return backward_seconds_;
}

}  // namespace zerosched::detail
