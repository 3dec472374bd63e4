// Ranks that have run out of batches, and what the others tell them to do.
#include "base/check.h"
#include "engine/engine.h"
#include "engine/phase_timer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace zerosched::detail {
namespace {

constexpr int64_t kCallNumbers = 4;  // which, two arguments, the loss scale that was given to unscale()
constexpr const char* kNextCall = "next call";

}  // namespace

std::string Engine::text_of_call(const double* numbers) {
  std::ostringstream text;
  switch (static_cast<Call>(static_cast<int>(numbers[0]))) {
    case Call::step:
      text << "step()";
      break;
    case Call::step_scaled:
      text << "a step with loss scale " << numbers[1];
      break;
    case Call::clip_norm:
      text << "clip_grad_norm_(" << numbers[1] << ", " << numbers[2] << ')';
      break;
    case Call::clip_value:
      text << "clip_grad_value_(" << numbers[1] << ')';
      break;
    case Call::drop:
      text << "zero_grad()";
      break;
  }
  if (numbers[3] != 0) text << " of gradients with loss scale " << numbers[3];
  return text.str();
}

// The ranks that have joined do as the first of the others says.
void Engine::find_leader() {
  at::Tensor first = at::empty({1}, at::kLong);
  *first.mutable_data_ptr<int64_t>() =
      reducer_->own_report().has_joined ? communicator_->size() : communicator_->rank();
  communicator_->all_reduce(first, ReduceOp::min, {"first rank with data", -1, reducer_->round()})->wait();
  current_.leader = static_cast<int>(*first.const_data_ptr<int64_t>());
}

void Engine::begin_call(Call call, const GroupOptions& options, double a, double b) {
  collect(options);
  // Of clipping ranks compare the arguments besides.
  const bool clips = call == Call::clip_norm || call == Call::clip_value;
  const bool follows = current_.leader >= 0;
  if (follows || (clips && communicator_->size() > 1)) tell_others(call, steering_->values(options, 0), a, b);
}

// From the first rank with data: what is done next, and with which options. Those that have joined do it too.
void Engine::tell_others(Call call, const std::vector<double>& own_values, double a, double b) {
  const int leader = std::max(current_.leader, 0);
  std::vector<double> own = {static_cast<double>(call), a, b, current_.unscaled.value_or(0)};
  own.insert(own.end(), own_values.begin(), own_values.end());
  at::Tensor told = at::empty({static_cast<int64_t>(own.size())}, at::kDouble);
  auto* numbers = told.mutable_data_ptr<double>();
  std::copy(own.begin(), own.end(), numbers);
  communicator_->broadcast(told, leader, {kNextCall, -1, reducer_->round()})->wait();
  const auto same_number = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
  if (!std::equal(numbers, numbers + kCallNumbers, own.begin(), same_number)) {
    const auto where = [](int rank) { return " on rank " + std::to_string(rank); };
    fail(text_of_call(own.data()) + where(communicator_->rank()) + ", but " + text_of_call(numbers) +
         where(leader) + ": make the same calls with the same arguments on every rank.");
  }
  const std::vector<double> values(numbers + kCallNumbers, numbers + told.numel());
  const std::string difference = steering_->difference(own_values, communicator_->rank(), values, leader);
  if (!difference.empty()) fail(difference);
  if (current_.leader >= 0) current_.values = values;
}

void Engine::join(const GroupOptions& options) {
  check_can_step();
  if (communicator_->size() == 1 || state_->layout().buckets.empty()) return;
  tell_peers_of_errors([&] {
    ZEROSCHED_CHECK(sharding_.gradients() == GradientInput::local,
        "join() with GradientInput::already_averaged: the trainer's own averaging waits for every rank.");
    ZEROSCHED_CHECK(!reducer_->in_flight() && !current_.collected && !reducer_->holds_accumulated(),
        "join() with gradients that no step has used: call step() or zero_grad() first.");
    ZEROSCHED_CHECK(!state_->model().device.is_cuda() || gave_weight_,
        "join() on a GPU: every rank has to give every step its step_weight(), 1 will do, so that steps look "
        "for ranks "
        "that have joined.");
    const at::NoGradGuard no_grad;
    const auto use = state_->executor().enter();
    for (;;) {
      settle();  // of the step before, which the others have waited for in theirs
      reducer_->set_joined();
      reducer_->launch_report();
      if (reducer_->report().joined == communicator_->size()) break;
      follow(options);
    }
    reducer_->abandon_round();
  });
}

// One step of the ranks that have data.
void Engine::follow(const GroupOptions& options) {
  begin_timings();
  const StepTimings::Recorder recorder(step_timings_, timings_);
  const PhaseTimer whole_step(timings_.step);
  collect(options);
  for (;;) {
    at::Tensor told = at::empty({kCallNumbers + steering_->count()}, at::kDouble);
    communicator_->broadcast(told, current_.leader, {kNextCall, -1, reducer_->round()})->wait();
    const auto* numbers = told.const_data_ptr<double>();
    const double a = numbers[1];
    if (numbers[3] != 0) current_.unscaled = numbers[3];
    current_.values.assign(numbers + kCallNumbers, numbers + told.numel());
    switch (static_cast<Call>(static_cast<int>(numbers[0]))) {
      case Call::clip_norm:
        make_norm_clip(a, numbers[2]);
        break;
      case Call::clip_value:
        make_value_clip(a);
        break;
      case Call::step:
        make_step(options, std::nullopt);
        return;
      case Call::step_scaled:
        make_step(options, a);
        return;
      case Call::drop:
        current_ = {};
        reducer_->drop(true);
        return;
    }
  }
}

void Engine::zero_grad(bool set_to_none) {
  check();
  const auto use =
      state_->executor().enter();  // not for y: a trainer drops gradients between step and forward
  tell_peers_of_errors([&] {
    const bool reduces = communicator_->size() > 1 && sharding_.gradients() == GradientInput::local;
    if (reduces && reducer_->in_flight() && !current_.collected) {
      reducer_->launch_missing();
      const bool late = late_reports_ && !reducer_->own_report().weight_is_given;
      if (!late && reducer_->report().joined > 0) {
        if (reducer_->report().suspecting > 0) check_suspected_writes();  // as those that have joined do
        find_leader();
      }
    }
    if (current_.leader >= 0)
      tell_others(Call::drop, std::vector<double>(static_cast<size_t>(steering_->count())), 0, 0);
    current_ = {};
    reducer_->drop(set_to_none);
  });
}

}  // namespace zerosched::detail
