#include "engine/gradient_reducer.h"

#include "comm/message_of.h"
#include "engine/gradient_guard.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace zerosched::detail {
namespace {

std::vector<ReportCodec> codecs_of(const Layout& layout, bool direct, int64_t report_values) {
  std::vector<ReportCodec> codecs;
  for (size_t b = 0; b < layout.buckets.size() && !direct; ++b) {
    codecs.emplace_back(layout.buckets[b].reduce_dtype, report_values, layout.world_size);
  }
  return codecs;
}

// Any bucket may become the first in order, which carries the report.
std::vector<int64_t> most_bytes_on_wire(const Layout& layout, const std::vector<ReportCodec>& codecs) {
  std::vector<int64_t> bytes;
  for (size_t b = 0; b < codecs.size(); ++b) {
    const Bucket& bucket = layout.buckets[b];
    bytes.push_back(layout.world_size * (bucket.gradient_slice_numel() + codecs[b].numel()) *
                    static_cast<int64_t>(c10::elementSize(bucket.reduce_dtype)));
  }
  return bytes;
}

}  // namespace

GradientReducer::GradientReducer(std::vector<at::Tensor> parameters, std::vector<std::string> names,
    const Layout& layout, std::shared_ptr<Communicator> communicator, const ShardingOptions& options,
    Executor& executor, int64_t report_values, Reporter reporter)
    : parameters_(std::move(parameters)),
      names_(std::move(names)),
      layout_(layout),
      communicator_(std::move(communicator)),
      executor_(executor),
      averaged_already_(options.gradients() == GradientInput::already_averaged),
      direct_(averaged_already_ || layout.world_size == 1),
      consume_gradients_(options.overlap_backward() && !averaged_already_),
      guards_gradients_(options.check_grad() && consume_gradients_),
      report_values_(report_values),
      reporter_(std::move(reporter)),
      edits_(parameters_),
      codecs_(codecs_of(layout, direct_, report_values)),
      pool_(most_bytes_on_wire(layout, codecs_), options.bucket_buffers(), *communicator_, executor.device()),
      received_(layout.buckets.size()),
      shards_(layout.buckets.size()),
      states_(parameters_.size()),
      used_(parameters_.size()),
      buckets_(layout.buckets.size()),
      order_(layout.buckets.size()),
      guards_(parameters_.size()) {
  for (size_t b = 0; b < shards_.size() && !direct_; ++b) {
    const Bucket& bucket = layout.buckets[b];
    const int64_t numel = bucket.gradient_slice_numel();
    received_[b] = executor_.empty(numel + codecs_[b].numel(), bucket.reduce_dtype);
    shards_[b] = received_[b].narrow(0, 0, numel);
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

void GradientReducer::gradient_left(int64_t parameter) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  edits_.saw(parameter, parameters_[static_cast<size_t>(parameter)].grad());
}

void GradientReducer::handle(int64_t parameter) {
  const std::string& name = names_[static_cast<size_t>(parameter)];
  if (!training_) {
    if (stray_.empty()) stray_ = text_of_stray(parameter);
    return;
  }
  const int64_t bucket = layout_.place_of[static_cast<size_t>(parameter)].bucket;
  if (bucket < 0) return;
  ParameterState& state = parameter_state(parameter);
  // Also under no_sync(): what backward adds now could no longer be sent.
  TORCH_CHECK(!state.arrived, "the gradient of parameter '", name,
      "' arrived twice in one step. Use no_sync() around all but the last backward to accumulate, call "
      "zero_grad() to drop the first, or construct the optimizer with "
      "ShardingOptions().overlap_backward(false) if several backward passes per step are meant.");
  TORCH_CHECK(!closed_, "a gradient of parameter '", name,
      "' arrived between clip_grad_norm_() or clip_grad_value_(), which end the reduction, and step(). Clip "
      "after the "
      "last backward.");
  if (no_sync_ > 0) {
    accumulate(parameter);
    return;
  }
  last_hook_ = std::chrono::steady_clock::now();
  if (arrived_count_++ == 0) start_round();
  state.arrived = true;
  if (direct_) {
    take_directly(parameter);
    guard_gradient(parameter);
    return;
  }
  BucketState& arrived_in = bucket_state(bucket);
  if (arrived_in.buffer >= 0) {
    move(parameter);
  } else if (has_gradient(parameter)) {
    state.waiting = true;
    state.seen = see_gradient(parameter);
  }
  if (--arrived_in.remaining == 0) observed_order_.push_back(bucket);
  pump();
}

void GradientReducer::set_weight(double weight) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(std::isfinite(weight) && weight >= 0, "step_weight(", weight,
      "): a weight is the number of samples or tokens of this rank, finite and not negative.");
  TORCH_CHECK(!averaged_already_,
      "step_weight() with GradientInput::already_averaged: the trainer averages, so it has "
      "to weigh too.");
  TORCH_CHECK(arrived_count_ == 0 && next_launch_ == 0 && !closed_,
      "step_weight() after gradients of this step have left: call it before the backward that is not under "
      "no_sync().");
  weight_ = codecs_.empty() ? weight : codec_of(carrier()).counted(weight);
}

void GradientReducer::set_joined() {
  const std::lock_guard<std::mutex> lock(mutex_);
  joined_ = true;
}

// Moves what can be moved without waiting: buffers of finished buckets to the next in order, their waiting
// gradients into them, and complete buckets onto the wire.
void GradientReducer::pump() {
  release_finished();
  for (; next_buffer_ < order_.size(); ++next_buffer_) {
    const int64_t bucket = order_[next_buffer_];
    const int buffer = pool_.take(bytes_on_wire(bucket));
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

int64_t GradientReducer::slice_numel(int64_t bucket) const {
  const int64_t report_numel = bucket == carrier() ? codec_of(bucket).numel() : 0;
  return layout_of(bucket).gradient_slice_numel() + report_numel;
}

int64_t GradientReducer::bytes_on_wire(int64_t bucket) const {
  return layout_.world_size * slice_numel(bucket) *
         static_cast<int64_t>(c10::elementSize(layout_of(bucket).reduce_dtype));
}

at::Tensor GradientReducer::buffer_of(int64_t bucket) const {
  return pool_.view(buckets_[static_cast<size_t>(bucket)].buffer, layout_.world_size * slice_numel(bucket),
      layout_of(bucket).reduce_dtype);
}

at::Tensor GradientReducer::slices(int64_t bucket, const at::Tensor& buffer) const {
  return buffer.view({layout_.world_size, slice_numel(bucket)});
}

// The bucket is order_[next_launch_] and has a buffer.
void GradientReducer::launch(int64_t bucket) {
  const at::Tensor buffer = buffer_of(bucket);
  zero_what_is_absent(bucket, buffer);
  write_flags(bucket, buffer);
  if (bucket == carrier()) {
    complete_own_report();
    write_report(bucket, buffer);
  }
  BucketState& state = bucket_state(bucket);
  state.work = communicator_->reduce_scatter(buffer,
      received_[static_cast<size_t>(bucket)].narrow(0, 0, slice_numel(bucket)),
      {"gradients", bucket, round_});
  state.launched = true;
  ++next_launch_;
}

void GradientReducer::launch_missing() {
  const std::lock_guard<std::mutex> lock(mutex_);
  launch_missing_locked();
}

void GradientReducer::launch_report() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const at::NoGradGuard no_grad;
  if (arrived_count_ == 0) start_round();
  launch_up_to(1);
}

void GradientReducer::launch_missing_locked() {
  const at::NoGradGuard no_grad;
  if (arrived_count_ == 0 && next_launch_ == 0) start_round();  // unless launch_report() has
  for (size_t p = 0; p < parameters_.size() && consume_gradients_; ++p) {
    if (states_[p].arrived && !states_[p].waiting) check_untouched(static_cast<int64_t>(p));
  }
  if (averaged_already_) compare_averages();
  if (direct_) {
    for (size_t p = 0; p < parameters_.size(); ++p) {
      if (!states_[p].arrived) take_directly(static_cast<int64_t>(p));
    }
    if (!averaged_already_) complete_own_report();
  } else {
    launch_up_to(order_.size());
  }
  closed_ = true;
  see_gradients();
}

void GradientReducer::launch_up_to(size_t count) {
  while (next_launch_ < count) {
    pump();
    if (next_launch_ >= count) break;
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
      if (parameter_state(slot.parameter).arrived || !has_gradient(slot.parameter)) continue;
      move(slot.parameter);
    }
    launch(bucket);
  }
}

void GradientReducer::wait(int64_t bucket) {
  if (!direct_) bucket_state(bucket).work->wait();  // rule 3
}

void GradientReducer::set_training(bool training) {
  const std::lock_guard<std::mutex> lock(mutex_);
  training_ = training;
  see_gradients();
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
  for (size_t p = 0; p < parameters_.size() && !training_ && !consume_gradients_ && stray_.empty(); ++p) {
    const auto parameter = static_cast<int64_t>(p);
    if (!has_own_gradient(parameter) || see_gradient(parameter) == states_[p].seen) continue;
    // LibTorch's zero_grad() may have zeroed it: then there is no gradient in it.
    const at::Tensor gradient = in_memory_order(parameters_[p].grad().detach(), parameter);
    if (executor_.sums_of_squares({gradient}).front() != 0) return text_of_stray(parameter);
  }
  return stray_;
}

bool GradientReducer::in_flight() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return arrived_count_ > 0 || next_launch_ > 0;
}

bool GradientReducer::holds_accumulated() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!consume_gradients_) return false;  // .grad is the user's, who knows what it is
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const bool has_elements = layout_.place_of[p].bucket >= 0;
    if (has_elements && has_gradient(static_cast<int64_t>(p))) return true;
  }
  return false;
}

int64_t GradientReducer::not_finite_parameter() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return not_finite_parameter_;
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
