#include "engine/gradient_reducer.h"

#include "base/check.h"
#include "base/message_of.h"

#include <ATen/core/grad_mode.h>

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
    Executor& executor, std::unique_ptr<GradientPacker> packer, int64_t report_values, Reporter reporter)
    : layout_(layout),
      communicator_(std::move(communicator)),
      executor_(executor),
      averaged_already_(options.gradients() == GradientInput::already_averaged),
      direct_(packer == nullptr),
      gradients_(std::move(parameters), std::move(names), layout, executor,
          options.overlap_backward() && !averaged_already_, options.check_grad()),
      report_values_(report_values),
      reporter_(std::move(reporter)),
      edits_(gradients_.parameters()),
      codecs_(codecs_of(layout, direct_, report_values)),
      packer_(std::move(packer)),
      pool_(most_bytes_on_wire(layout, codecs_), options.bucket_buffers(), *communicator_, executor.device()),
      received_(layout.buckets.size()),
      shards_(layout.buckets.size()),
      states_(gradients_.count()),
      buckets_(layout.buckets.size()) {
  for (size_t b = 0; b < shards_.size() && !direct_; ++b) {
    const Bucket& bucket = layout.buckets[b];
    const int64_t numel = bucket.gradient_slice_numel();
    received_[b] = executor_.empty(numel + codecs_[b].numel(), bucket.reduce_dtype);
    shards_[b] = received_[b].narrow(0, 0, numel);
  }
  std::vector<int64_t> order(layout.buckets.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  set_order(std::move(order));
  reset_round();
}

void GradientReducer::set_order(std::vector<int64_t> order) {
  order_ = std::move(order);
  positions_.resize(order_.size());
  for (size_t position = 0; position < order_.size(); ++position) {
    positions_[static_cast<size_t>(order_[position])] = position;
  }
  pool_.assign(order_);
}

void GradientReducer::gradient_ready(int64_t parameter) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.empty()) return;
  try {
    const at::NoGradGuard no_grad;
    handle(parameter);
  } catch (const std::exception& error) {
    error_ = "rank " + std::to_string(communicator_->rank()) + ": " + message_of(error);
  }
  if (!error_.empty()) communicator_->abort(error_);
}

void GradientReducer::gradient_left(int64_t parameter) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  edits_.saw(parameter, gradients_.parameter(parameter).grad());
}

void GradientReducer::handle(int64_t parameter) {
  const std::string& name = gradients_.name(parameter);
  if (!training_) {
    if (stray_.empty()) stray_ = text_of_stray(parameter);
    return;
  }
  const int64_t bucket = layout_.place(parameter).bucket;
  if (bucket < 0) return;
  ParameterState& state = parameter_state(parameter);
  // Also under no_sync(): what backward adds now could no longer be sent.
  ZEROSCHED_CHECK(!state.arrived, "the gradient of parameter '", name,
      "' arrived twice in one step. Use no_sync() around all but the last backward to accumulate, call "
      "zero_grad() to drop the first, or construct the optimizer with "
      "ShardingOptions().overlap_backward(false) if several backward passes per step are meant.");
  ZEROSCHED_CHECK(!closed_, "a gradient of parameter '", name,
      "' arrived between clip_grad_norm_() or clip_grad_value_(), which end the reduction, and step(). Clip "
      "after the "
      "last backward.");
  if (no_sync_ > 0) {
    gradients_.accumulate(parameter);
    return;
  }
  last_hook_ = std::chrono::steady_clock::now();
  if (arrived_count_++ == 0) start_round();
  state.arrived = true;
  if (direct_) {
    take_directly(parameter);
    guard(parameter);
    return;
  }
  BucketState& arrived_in = bucket_state(bucket);
  if (arrived_in.out.flat.defined() || !packer_->needs_buffer()) {
    put(parameter);
  } else if (gradients_.has(parameter)) {
    state.waiting = true;
    state.seen = gradients_.see(parameter);
  }
  if (--arrived_in.remaining == 0) {
    observed_order_.push_back(bucket);
    packer_->seal(bucket);
  }
  pump();
  packer_->give_back();
}

void GradientReducer::set_weight(double weight) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ZEROSCHED_CHECK(std::isfinite(weight) && weight >= 0, "step_weight(", weight,
      "): a weight is the number of samples or tokens of this rank, finite and not negative.");
  ZEROSCHED_CHECK(!averaged_already_,
      "step_weight() with GradientInput::already_averaged: the trainer averages, so it has "
      "to weigh too.");
  ZEROSCHED_CHECK(arrived_count_ == 0 && next_launch_ == 0 && !closed_,
      "step_weight() after gradients of this step have left: call it before the backward that is not under "
      "no_sync().");
  weight_ = codecs_.empty() ? weight : codec_of(carrier()).counted(weight);
}

void GradientReducer::set_joined() {
  const std::lock_guard<std::mutex> lock(mutex_);
  joined_ = true;
}

// Buffers to the next buckets in order, what waits for them into them, and complete buckets onto the wire, as far as that
// goes without waiting.
void GradientReducer::pump() {
  for (; next_buffer_ < order_.size() && buffer_is_free(next_buffer_); ++next_buffer_) {
    give_buffer(order_[next_buffer_]);
  }
  while (next_launch_ < next_buffer_ && bucket_state(order_[next_launch_]).remaining == 0) {
    launch(next_launch_);
  }
}

// Whether the host may use it: a reduction that the device waits for needs no look.
bool GradientReducer::buffer_is_free(size_t position) const {
  const int64_t before = pool_.user_before(position);
  if (before < 0) return true;
  const auto& work = buckets_[static_cast<size_t>(order_[static_cast<size_t>(before)])].work;
  return work != nullptr && (!work->blocks_host() || work->done());
}

void GradientReducer::give_buffer(int64_t bucket) {
  OutgoingBucket& out = bucket_state(bucket).out;
  out.slice_numel = slice_numel(bucket);
  out.flat =
      pool_.view(position_of(bucket), layout_.world_size * out.slice_numel, layout_of(bucket).reduce_dtype);
  for (const Slot& slot : layout_of(bucket).slots) {
    if (parameter_state(slot.parameter).waiting) put(slot.parameter);
  }
}

const OutgoingBucket& GradientReducer::outgoing(int64_t bucket) {
  OutgoingBucket& out = bucket_state(bucket).out;
  out.weight = weight();
  return out;
}

int64_t GradientReducer::slice_numel(int64_t bucket) const {
  const int64_t report_numel = bucket == carrier() ? codec_of(bucket).numel() : 0;
  return layout_of(bucket).gradient_slice_numel() + report_numel;
}

// The bucket has a buffer.
void GradientReducer::launch(size_t position) {
  const int64_t bucket = order_[position];
  // The first of a round after all that use the last round's gradients.
  const auto beside = executor_.beside(/*after_all=*/position == 0);
  // Rule 2.
  if (const int64_t before = pool_.user_before(position); before >= 0) {
    bucket_state(order_[static_cast<size_t>(before)]).work->wait();
  }
  const std::vector<std::byte> report = encoded_report(bucket);
  const OutgoingBucket& out = outgoing(bucket);
  packer_->finish(out, report.data());
  bucket_state(bucket).work = communicator_->reduce_scatter(out.flat,
      received_[static_cast<size_t>(bucket)].narrow(0, 0, out.slice_numel), {"gradients", bucket, round_});
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
  for (size_t p = 0; p < states_.size() && gradients_.consumes(); ++p) {
    if (states_[p].arrived && !states_[p].waiting) check_untouched(static_cast<int64_t>(p));
  }
  if (averaged_already_) compare_averages();
  if (direct_) {
    for (size_t p = 0; p < states_.size(); ++p) {
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
  for (pump(); next_launch_ < count; pump()) {
    const int64_t bucket = order_[next_launch_];
    if (next_launch_ == next_buffer_) {
      const auto before = static_cast<size_t>(pool_.user_before(next_launch_));
      bucket_state(order_[before]).work->wait();  // rule 2
      give_buffer(bucket);
      ++next_buffer_;
    }
    for (const Slot& slot : layout_of(bucket).slots) {
      if (!parameter_state(slot.parameter).arrived && gradients_.has(slot.parameter)) put(slot.parameter);
    }
    launch(next_launch_);
  }
}

void GradientReducer::wait(int64_t bucket) {
  if (direct_) return;
  bucket_state(bucket).work->wait();  // rule 3
  const std::lock_guard<std::mutex> lock(mutex_);
  packer_->reduced(bucket);
}

void GradientReducer::wait_locked(int64_t bucket) {
  bucket_state(bucket).work->wait();  // rule 3
  packer_->reduced(bucket);
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
  for (size_t p = 0; p < states_.size() && !training_ && !gradients_.consumes() && stray_.empty(); ++p) {
    const auto parameter = static_cast<int64_t>(p);
    if (!gradients_.is_in_grad(parameter) || gradients_.see(parameter) == states_[p].seen) continue;
    // LibTorch's zero_grad() may have zeroed it: then there is no gradient in it.
    if (executor_.sums_of_squares({gradients_.look(parameter)}).front() != 0) return text_of_stray(parameter);
  }
  return stray_;
}

bool GradientReducer::in_flight() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return arrived_count_ > 0 || next_launch_ > 0;
}

bool GradientReducer::holds_accumulated() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!gradients_.consumes()) return false;  // .grad is the user's, who knows what it is
  for (size_t p = 0; p < states_.size(); ++p) {
    const bool has_elements = layout_.place_of[p].bucket >= 0;
    if (has_elements && gradients_.has(static_cast<int64_t>(p))) return true;
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
