#include "engine/engine.h"

#include "base/check.h"
#include "base/message_of.h"
#include "comm/agree.h"
#include "comm/member.h"
#include "engine/phase_timer.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <exception>
#include <utility>

namespace zerosched::detail {

void Engine::fail(const std::string& message) const {
  const std::string full = "rank " + std::to_string(communicator_->rank()) + ": " + message;
  // Alone there is nobody to be told, and the optimizer goes on working.
  if (communicator_->size() == 1) throw Error(full);
  const Cause cause{full, communicator_->rank()};
  zerosched::detail::fail(*communicator_, cause);
  cause.raise();
}

void Engine::check() const {
  check_not_replaced();
  communicator_->check();
}

void Engine::check_can_step() const {
  check();
  ZEROSCHED_CHECK(training_,
      "step() in eval mode: the parameters are x, where gradients do not belong. Call train() before "
      "forward and backward.");
}

void Engine::give_up(const std::exception& error) {
  if (communicator_->size() == 1) {
    cancel_round();
  } else {
    communicator_->check();  // a peer may have failed first, and then every rank says what that one says
    fail(message_of(error));
  }
}

void Engine::step(const GroupOptions& options) {
  check_can_step();
  tell_peers_of_errors([&] { run_step(options, std::nullopt); });
}

std::shared_ptr<StepOutcome> Engine::step_scaled(const GroupOptions& options, double loss_scale) {
  check_can_step();
  return tell_peers_of_errors([&] { return run_step(options, loss_scale); });
}

std::shared_ptr<StepOutcome> Engine::run_step(const GroupOptions& options, std::optional<double> loss_scale) {
  const at::NoGradGuard no_grad;
  const auto use = enter();
  begin_timings();
  const StepTimings::Recorder recorder(step_timings_, timings_);
  const PhaseTimer whole_step(timings_.step);
  begin_call(loss_scale ? Call::step_scaled : Call::step, options, loss_scale.value_or(1));
  return make_step(options, loss_scale);
}

std::shared_ptr<StepOutcome> Engine::make_step(
    const GroupOptions& options, std::optional<double> loss_scale) {
  const int64_t changed = reducer_->changed_gradient();
  ZEROSCHED_CHECK(changed < 0, "the gradient of parameter '",
      state_->model().names[static_cast<size_t>(changed)],
      "' was changed between clipping and step(), which uses what was clipped. Clip last.");

  const bool checks_gradients = !loss_scale && sharding_.non_finite() == NonFinite::error;
  const bool skips = loss_scale || sharding_.non_finite() == NonFinite::skip;
  ZEROSCHED_CHECK(!loss_scale || !current_.unscaled || *loss_scale == *current_.unscaled,
      "GradScaler::step() with scale ", *loss_scale, " after unscale_() with ", *current_.unscaled,
      ": use one scaler for both.");
  const double scale = loss_scale.value_or(current_.unscaled.value_or(1));
  grad_scale_ = current_.average / scale;
  auto outcome = std::make_shared<StepOutcome>();
  bool steps = current_.has_data;
  const auto skip = [&] {
    ++skipped_steps_;
    if (!loss_scale) warn_of_skip();
    outcome->set(StepOutcome::Kind::skipped);
    steps = false;
  };
  if (steps && checks_gradients) agree_not_finite(sharding_.max_grad_norm().has_value());
  std::vector<GroupState> next = prepare(options);
  has_grad_norm_ = false;
  if (steps && (sharding_.max_grad_norm() || skips)) {
    {
      // Apart from the norm itself, so that waiting for peers does not look like work.
      const PhaseTimer timer(timings_.wait_reduce_scatter);
      for (const int64_t bucket : reducer_->order()) reducer_->wait(bucket);
    }
    const PhaseTimer timer(timings_.norm);
    measure_grad_norm(sharding_.max_grad_norm(), skips || checks_gradients);
    if (skips && state_->model().device.is_cuda() && !state_->algorithm().takes_loss()) {
      // The update changes nothing if it overflows; the host need not know before the next step.
      updater_->expect_norm();
      undecided_ = {next, outcome, /*warns=*/!loss_scale};
    } else if (skips && updater_->overflows()) {
      skip();
    }
    // On a device a step that overflows changes nothing, and is told later.
    if (checks_gradients && !state_->model().device.is_cuda() && updater_->overflows()) {
      const int64_t parameter = reducer_->not_finite_parameter();
      throw_not_finite(parameter < 0 ? "" : not_finite_gradient(parameter));
    }
  }
  if (steps && state_->algorithm().takes_loss()) {
    const LossMeasure measure = measure_loss(options);
    if (skips && !std::isfinite(measure.loss)) {
      skip();
    } else {
      if (checks_gradients) check_loss(measure);
      next = prepare(options, &measure);
    }
  }
  if (steps) {
    if (!update_and_gather(checks_gradients)) state_->set_finite(false);
    if (undecided_) {
      outcome->decide = [this] { decide(); };
    } else {
      state_->groups() = std::move(next);
      outcome->set(StepOutcome::Kind::taken);
    }
  } else {
    for (const int64_t bucket : reducer_->order()) reducer_->wait(bucket);
    if (!current_.has_data) outcome->set(StepOutcome::Kind::no_data);
  }
  end_round(options, loss_scale ? scale : 0, skips);
  return outcome;
}

// Waits for what a GPU has made of the last step.
void Engine::decide() {
  if (!undecided_) return;
  const bool overflows = updater_->overflows();
  const Undecided step = *std::exchange(undecided_, std::nullopt);
  if (overflows) {
    ++skipped_steps_;
    if (step.warns) warn_of_skip();
  } else {
    state_->groups() = step.next;
  }
  step.outcome->set(overflows ? StepOutcome::Kind::skipped : StepOutcome::Kind::taken);
}

// The scalars of the step to the updater; the groups' states after it are the result. `measure`: what an algorithm that
// takes the loss makes them of, once the norm is known; before it they serve for that alone.
std::vector<GroupState> Engine::prepare(const GroupOptions& options, const LossMeasure* measure) {
  // Rank 0's numbers, where they differ in their last bits.
  const auto copies = steering_->with_values(options, current_.values);
  std::vector<GroupState> next;
  std::vector<kernels::StepScalars> scalars;
  for (size_t g = 0; g < state_->groups().size(); ++g) {
    PreparedStep prepared =
        measure == nullptr ? state_->algorithm().prepare(*copies[g], state_->groups()[g])
                           : state_->algorithm().prepare_by_loss(*copies[g], state_->groups()[g], *measure);
    prepared.scalars.grad_scale = grad_scale_ * current_.clip;
    prepared.scalars.clamp_low = state_->model().clamps[g].low;
    prepared.scalars.clamp_high = state_->model().clamps[g].high;
    scalars.push_back(prepared.scalars);
    next.push_back(prepared.next);
  }
  measure == nullptr ? updater_->begin_step(scalars) : updater_->replace_scalars(scalars);
  return next;
}

// How many buckets take one update, if the first of them is this one in order. The CPU takes them one by one, to use what
// is there while others arrive. A GPU takes one launch for many, twice as many each time: the first gather starts early,
// and as an update is several times as fast as a gather of the same bucket, none after it has to wait. Alone, nothing is
// gathered.
size_t Engine::updated_together(size_t position) const {
  if (!state_->model().device.is_cuda()) return 1;
  return communicator_->size() == 1 ? reducer_->order().size() : position + 1;
}

// Whether the state is finite after it, as far as the host can see now.
bool Engine::update_and_gather(bool checks_gradients) {
  bool finite = true;
  std::vector<std::shared_ptr<Work>> gathers;
  const std::vector<int64_t>& order = reducer_->order();
  for (size_t begin = 0, count = 0; begin < order.size(); begin += count) {
    count = std::min(updated_together(begin), order.size() - begin);
    const std::vector<int64_t> buckets(order.begin() + static_cast<std::ptrdiff_t>(begin),
        order.begin() + static_cast<std::ptrdiff_t>(begin + count));
    {
      const PhaseTimer timer(timings_.wait_reduce_scatter);
      for (const int64_t bucket : buckets) reducer_->wait(bucket);
    }
    {
      const PhaseTimer timer(timings_.update);
      // What is not finite in other ranks' parts of the bucket is theirs to tell.
      const bool bad = checks_gradients && !state_->model().device.is_cuda() &&
                       reducer_->not_finite_sources(buckets.front()).count > 0 &&
                       not_finite_in_shard(buckets.front()) >= 0;
      const bool are_finite = !bad && updater_->update(buckets);
      if (!are_finite && checks_gradients) fail_not_finite(buckets.front());
      finite = finite && are_finite;
    }
    if (gathers_) continue;  // after all updates
    // Launching counts as waiting: a backend may move data right away.
    const PhaseTimer timer(timings_.wait_all_gather);
    for (const int64_t bucket : buckets) {
      gathers.push_back(communicator_->all_gather(
          state_->parameters().buffer(bucket), {"parameters", bucket, reducer_->round()}));
    }
  }
  {
    const PhaseTimer timer(timings_.wait_all_gather);
    for (const auto& gather : gathers) gather->wait();  // rule 7
  }
  state_->parameters().mark_written();
  if (gathers_) {
    const PhaseTimer timer(timings_.wait_all_gather);
    launch_gathers();
  }
  return finite;
}

void Engine::end_round(const GroupOptions& options, double loss_scale, bool skips) {
  const OwnReport& own = reducer_->own_report();
  gave_weight_ = own.weight_is_given || own.has_joined;
  std::vector<double> used = steering_->values(options, loss_scale);
  // What this rank alone has, not rank 0's that it may have stepped with: only that tells where they came apart.
  if (current_.leader >= 0) used = current_.values, used.back() = loss_scale;
  if (late_reports_) {
    late_reports_->send(current_.report ? at::Tensor() : reducer_->report_on_device(),
        skips ? at::Tensor() : updater_->norm_on_device(),
        {(undecided_ ? undecided_->next : state_->groups()).front().k, own, used, reducer_->carrier(), {},
            false});
  }
  last_values_ = std::move(used);
  last_clip_ = current_.clip;
  current_ = {};
  reducer_->finish_round();
  timings_.backward = reducer_->backward_seconds();
  register_missing_hooks();
}

}  // namespace zerosched::detail
