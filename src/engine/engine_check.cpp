// What makes a step wrong without anybody's calling it so: parameters that others have written, options that ranks do
// not share, numbers that are not finite.
#include "base/check.h"
#include "comm/agree.h"
#include "comm/failure/whereabouts.h"
#include "engine/engine.h"
#include "engine/equal_on_ranks.h"
#include "layout/description.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace zerosched::detail {

void Engine::check_frozen() const {
  const std::string has_thawed = unfrozen(state_->model());
  ZEROSCHED_CHECK(has_thawed.empty(), has_thawed);
}

// Whether this step compares bits: writes through Tensor::data() leave no other trace. The first steps show what is done
// around every step, and the later ones, ever rarer, cost nothing that counts.
bool Engine::looks_at_bits() const {
  const int64_t round = reducer_->round();
  return (round & (round - 1)) == 0;
}

bool Engine::may_have_been_written() {
  // On a device nobody could be told in time.
  if (state_->model().device.is_cuda() && communicator_->size() > 1) return false;
  if (!state_->parameters().changed().empty()) return true;
  if (looks_at_bits()) decide();  // where y is depends on it
  return looks_at_bits() && (!gathers_ || gathers_->are_shown()) && !written_by_others().empty();
}

// Compares the bits of this rank's part of every parameter with what the state says that the optimizer wrote there.
std::string Engine::written_by_others() const {
  if (!state_->parameters().replaced().empty()) return state_->parameters().changed();
  const Point point = training_ ? Point::y : Point::x;
  for (size_t b = 0; b < state_->layout().buckets.size(); ++b) {
    const Bucket& bucket = state_->layout().buckets[b];
    const auto number = static_cast<int64_t>(b);
    const int64_t found = updater_->first_difference(number,
        state_->parameters().slice(number, communicator_->rank()), state_->interpolation(number, point));
    if (found < 0) continue;
    for (const Piece& piece : bucket.pieces) {
      const bool holds = piece.slice == communicator_->rank() && piece.slice_begin <= found &&
                         found < piece.slice_begin + piece.numel;
      if (holds) return state_->parameters().text_of_write(bucket.slot_of(piece).parameter);
    }
  }
  return {};
}

// What this rank's parameters have that rank 0's have not: a part that another rank owns may have been written here
// alone. Collective.
std::string Engine::unlike_rank_zero() {
  const auto count = static_cast<int64_t>(state_->model().parameters.size());
  at::Tensor hashes = at::empty({count}, at::kLong);
  for (int64_t p = 0; p < count; ++p)
    hashes.mutable_data_ptr<int64_t>()[p] = hash_of(state_->model().parameters[static_cast<size_t>(p)]);
  const at::Tensor own = hashes.clone();
  communicator_->broadcast(hashes, 0, {"parameter hashes"})->wait();
  for (int64_t p = 0; p < count; ++p) {
    if (own.const_data_ptr<int64_t>()[p] == hashes.const_data_ptr<int64_t>()[p]) continue;
    return state_->parameters().text_of_write(p) +
           " (Its values are not rank 0's: one of the two ranks has written it.)";
  }
  return {};
}

void Engine::check_writes(const std::string& caller) {
  const auto by_caller = [&](const std::string& error) { return error.empty() ? error : caller + error; };
  agree(*communicator_, by_caller(written_by_others()));
  // On a device all of the model would have to come to the host.
  if (communicator_->size() > 1 && state_->model().device.is_cpu())
    agree(*communicator_, by_caller(unlike_rank_zero()));
  state_->parameters().accept();
}

void Engine::check_values_of_last_step() {
  if (communicator_->size() == 1 || last_values_.empty()) return;
  at::Tensor values = at::empty({static_cast<int64_t>(last_values_.size())}, at::kDouble);
  auto* numbers = values.mutable_data_ptr<double>();
  std::copy(last_values_.begin(), last_values_.end(), numbers);
  communicator_->broadcast(values, 0, {"options of the last step"})->wait();
  const std::vector<double> of_rank_zero(numbers, numbers + values.numel());
  agree(*communicator_, steering_->difference(last_values_, communicator_->rank(), of_rank_zero, 0));
}

void Engine::check_in_step(const std::string& caller) {
  const at::NoGradGuard no_grad;
  const auto use = enter();
  read_late_reports(true);
  check_writes(caller);
  check_values_of_last_step();
}

std::string Engine::not_finite_text(const std::string& what, int64_t step) const {
  const char* ready =
      sharding_.check_ready()
          ? " Or forward used a parameter without ready(): with check_ready it is NaN until then."
      : sharding_.overlap_forward()
          ? " Or forward used a parameter without ready(), as overlap_forward asks for: "
            "ShardingOptions().check_ready(true) makes it NaN until then, to find out."
          : "";
  return what + " held an inf or a NaN in step " + std::to_string(step) +
         ". Look for what made it: the loss, a division by zero, too large a learning rate." + ready +
         " ShardingOptions().non_finite(NonFinite::skip) leaves such steps out.";
}

std::string Engine::not_finite_gradient(int64_t parameter) const {
  return not_finite_text(
      "the gradient of parameter '" + state_->model().names[static_cast<size_t>(parameter)] + "'",
      state_->groups().front().k + 1);
}

// Gradients of this rank that are not finite. If they were told with the gradients, or if a norm that every rank is going
// to see will tell, then no rank steps; else the others are told as of any error.
void Engine::agree_not_finite(bool norm_follows) {
  if (state_->model().device.is_cuda()) return;
  const int64_t parameter = reducer_->not_finite_parameter();
  const std::string error = parameter < 0 ? "" : not_finite_gradient(parameter);
  if (current_.report->not_finite > 0 || current_.overflows) throw_not_finite(error);
  ZEROSCHED_CHECK(error.empty() || norm_follows, error);
}

// Every rank knows that some gradient is not finite, and none has stepped.
void Engine::throw_not_finite(const std::string& own_error) {
  const InCall call("step()");  // also on ranks that have joined
  std::string error = own_error;
  const bool sums = communicator_->size() > 1 && sharding_.gradients() == GradientInput::local;
  for (size_t b = 0; b < state_->layout().buckets.size() && error.empty() && !sums; ++b) {
    const int64_t parameter = not_finite_in_shard(static_cast<int64_t>(b));
    if (parameter >= 0) error = not_finite_gradient(parameter);
  }
  const std::string overflow =
      not_finite_text("the norm of the averaged gradient", state_->groups().front().k + 1);
  cancel_round();
  agree(*communicator_, error);
  throw AgreedError(overflow);
}

// Once: a trainer whose every other step is left out should not have to ask for the count to know.
void Engine::warn_of_skip() const {
  // A device does not say which; and this may be in a hook, which holds the reducer's lock.
  const int64_t parameter = state_->model().device.is_cuda() ? -1 : reducer_->not_finite_parameter();
  if (skipped_steps_ > 1 || (parameter < 0 && communicator_->rank() != 0)) return;
  const int64_t step = state_->groups().front().k + 1;
  TORCH_WARN("zerosched: rank ", communicator_->rank(), ": step ", step, " was left out: ",
      parameter < 0 ? not_finite_text("the averaged gradient", step) : not_finite_gradient(parameter),
      " skipped_steps() counts them; this is said once.");
}

// The first parameter with a gradient that is not finite, in this rank's part of a bucket; -1: none.
int64_t Engine::not_finite_in_shard(int64_t bucket) const {
  for (const GradientSpan& span : reducer_->spans(bucket)) {
    const at::Tensor values = span.source.narrow(0, span.source_begin, span.numel);
    const double largest = kernels::max_abs(values.scalar_type(), values.const_data_ptr(), values.numel());
    if (!std::isfinite(largest)) return span.parameter;
  }
  return -1;
}

// An owner finds out what the gradient's source will say as well, or what the sum, or its square, has made.
void Engine::fail_not_finite(int64_t bucket) {
  state_->set_finite(false);
  const NotFiniteSources sources = reducer_->not_finite_sources(bucket);
  const int64_t parameter = not_finite_in_shard(bucket);
  const Bucket& layout = state_->layout().bucket(bucket);
  const int64_t named = parameter >= 0 ? parameter : layout.slots.front().parameter;
  const std::string name = "parameter '" + state_->model().names[static_cast<size_t>(named)] + "'";
  std::string what = "the gradient of " + name;
  if (parameter < 0) {
    what = "the state in the bucket of " + name + ", by overflow,";
  } else if (sources.rank >= 0) {
    what += " on rank " + std::to_string(sources.rank);
  } else if (sources.count > 1) {
    what += " on " + std::to_string(sources.count) + " ranks";
  } else if (sources.count == 0 && communicator_->size() > 1) {
    what = "the sum over ranks of the gradient of " + name;
  }
  fail(not_finite_text(what, state_->groups().front().k + 1));
}

}  // namespace zerosched::detail
