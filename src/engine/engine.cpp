#include "engine/engine.h"

#include "comm/agree.h"
#include "comm/message_of.h"
#include "engine/phase_timer.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <exception>
#include <utility>

namespace zerosched::detail {

void Engine::fail(const std::string& message) const {
  const std::string full = "rank " + std::to_string(communicator_->rank()) + ": " + message;
  communicator_->abort(full);
  TORCH_CHECK(false, full);
}

void Engine::check() const {
  check_not_replaced();
  communicator_->check();
}

void Engine::check_can_step() const {
  check();
  TORCH_CHECK(training_,
      "step() in eval mode: the parameters are x, where gradients do not belong. Call train() before "
      "forward and backward.");
}

void Engine::check_unchanged() const {
  const std::string changed = parameters_->changed();
  if (!changed.empty()) fail(changed);
  const std::string has_thawed = unfrozen(model_);
  if (!has_thawed.empty()) fail(has_thawed);
}

// What goes wrong on one rank alone must reach the peers, which wait in collectives.
template <typename Function>
auto Engine::tell_peers_of_errors(Function&& function) {
  try {
    return function();
  } catch (const std::exception& error) {
    if (communicator_->failure().empty()) fail(message_of(error));
    throw;
  }
}

void Engine::step(const GroupOptions& options) {
  check_can_step();
  grad_scale_ = averaging();
  tell_peers_of_errors([&] { run_step(options, false); });
}

bool Engine::step_scaled(const GroupOptions& options, double loss_scale) {
  check_can_step();
  grad_scale_ = averaging() / loss_scale;
  return tell_peers_of_errors([&] { return run_step(options, true); });
}

bool Engine::run_step(const GroupOptions& options, bool skip_overflow) {
  const at::NoGradGuard no_grad;
  const auto use = executor_->enter();
  timings_ = {};
  const StepTimings::Recorder recorder(step_timings_, timings_);
  const PhaseTimer whole_step(timings_.step);
  check_unchanged();
  {
    const PhaseTimer timer(timings_.collect_gradients);
    reducer_->launch_missing();
  }
  std::vector<GroupState> next;
  {
    std::vector<kernels::StepScalars> scalars;
    for (size_t g = 0; g < groups_.size(); ++g) {
      PreparedStep prepared = algorithm_->prepare(*options[g], groups_[g]);
      prepared.scalars.grad_scale = grad_scale_;
      scalars.push_back(prepared.scalars);
      next.push_back(prepared.next);
    }
    updater_->begin_step(scalars);
  }
  has_grad_norm_ = false;
  if (sharding_.max_grad_norm() || skip_overflow) {
    {
      // Apart from the norm itself, so that waiting for peers does not look like work.
      const PhaseTimer timer(timings_.wait_reduce_scatter);
      for (const int64_t bucket : reducer_->order()) reducer_->wait(bucket);
    }
    const PhaseTimer timer(timings_.norm);
    measure_grad_norm(sharding_.max_grad_norm(), skip_overflow);
    if (skip_overflow && !std::isfinite(updater_->norm())) {
      reducer_->finish_round();
      timings_.backward = reducer_->backward_seconds();
      return false;
    }
  }

  std::vector<std::shared_ptr<Work>> gathers;
  for (const int64_t bucket : reducer_->order()) {
    {
      const PhaseTimer timer(timings_.wait_reduce_scatter);
      reducer_->wait(bucket);
    }
    {
      const PhaseTimer timer(timings_.update);
      updater_->update(bucket);
    }
    // Launching counts as waiting: a backend may move data right away.
    const PhaseTimer timer(timings_.wait_all_gather);
    gathers.push_back(
        communicator_->all_gather(parameters_->buffer(bucket), {"parameters", bucket, reducer_->round()}));
  }
  {
    const PhaseTimer timer(timings_.wait_all_gather);
    for (const auto& gather : gathers) gather->wait();  // rule 7
  }
  parameters_->mark_written();
  groups_ = std::move(next);
  reducer_->finish_round();
  timings_.backward = reducer_->backward_seconds();
  return true;
}

double Engine::averaging() const {
  return sharding_.gradients() == GradientInput::already_averaged ? 1.0 : 1.0 / communicator_->size();
}

// L2 norm of the averaged gradient. Summed per shard, then over ranks: in another order at another world
// size.
void Engine::measure_grad_norm(std::optional<double> max_norm, bool skip_non_finite) {
  const at::Tensor sum = updater_->sum_of_squares();
  communicator_->all_reduce(sum, ReduceOp::sum, {"gradient norm", -1, reducer_->round()})->wait();
  updater_->use_norm(sum, max_norm, skip_non_finite);
  has_grad_norm_ = true;
}

double Engine::grad_norm() {
  check();
  const auto use = executor_->enter();
  if (!has_grad_norm_) {
    agree(*communicator_,
        reducer_->holds_last_round()
            ? ""
            : "grad_norm() is of the last step(), and there is none yet, or the next backward has begun, or "
              ".grad has been changed. Call it right after step(), or set ShardingOptions::max_grad_norm.");
    measure_grad_norm(std::nullopt, false);
  }
  return updater_->norm();
}

void Engine::zero_grad(bool set_to_none) {
  check();
  const auto use = executor_->enter();
  tell_peers_of_errors([&] { reducer_->drop(set_to_none); });
}

void Engine::enter_no_sync() { reducer_->enter_no_sync(); }

void Engine::leave_no_sync() { reducer_->leave_no_sync(); }

// What can be wrong on one rank alone is agreed on before anyone moves a parameter.
void Engine::set_point(Point point) {
  check();
  std::string error;
  if (reducer_->in_flight()) {
    error =
        "train() and eval() need a finished step, but gradient buckets are in flight: call step() or "
        "zero_grad() first.";
  }
  if (error.empty()) error = reducer_->stray();
  if (error.empty()) error = parameters_->changed();
  agree(*communicator_, error);
  write_point(point);
  training_ = point == Point::y;
  reducer_->set_training(training_);
}

void Engine::write_point(Point point) {
  const at::NoGradGuard no_grad;
  const auto use = executor_->enter();
  std::vector<std::shared_ptr<Work>> gathers;
  for (int64_t b = 0; b < static_cast<int64_t>(layout_.buckets.size()); ++b) {
    write_shard(b, point, parameters_->slice(b, communicator_->rank()));
    gathers.push_back(communicator_->all_gather(
        parameters_->buffer(b), {point == Point::x ? "parameters at x" : "parameters at y", b}));
  }
  for (const auto& gather : gathers) gather->wait();  // rule 7
  parameters_->mark_written();
}

void Engine::write_shard(int64_t bucket, Point point, const at::Tensor& out) {
  const auto group = static_cast<size_t>(layout_.buckets[static_cast<size_t>(bucket)].group);
  updater_->interpolate(bucket, out, algorithm_->interpolation(point, groups_[group]));
}

void Engine::train() {
  if (!training_) set_point(Point::y);
}

void Engine::eval() {
  if (!training_) return;
  set_point(Point::x);
  settle_module();
}

Engine::~Engine() {
  // One rank's optimizer going in an exception must not leave the others waiting for its collectives.
  if (std::uncaught_exceptions() > exceptions_at_start_ && communicator_->size() > 1) {
    communicator_->abort("rank " + std::to_string(communicator_->rank()) +
                         ": an exception ended the scope of its optimizer; that rank says which.");
  }
  hooks_.clear();
  finish_in_flight();
  parameters_->release();
  try {
    executor_->leave();
  } catch (const std::exception& error) {
    TORCH_WARN("zerosched: the device failed before the optimizer was destroyed: ", message_of(error));
  }
}

}  // namespace zerosched::detail
