// y while training, x for evaluation.
#include "comm/agree.h"
#include "engine/engine.h"

#include <ATen/core/grad_mode.h>

#include <string>

namespace zerosched::detail {

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
  if (error.empty()) error = state_->executor().why_not_enterable();
  agree(*communicator_, error);
  tell_peers_outside_round([&] {
    check_in_step("");
    const at::NoGradGuard no_grad;
    const auto use = enter();
    state_->write_parameters(point);
  });
  training_ = point == Point::y;
  reducer_->set_training(training_);
}

// In train mode parameters may yet be on their way to y.
void Engine::train() { training_ ? settle() : set_point(Point::y); }

void Engine::eval() {
  if (!training_) return;
  set_point(Point::x);
  settle_module();
}

// y is x where nothing is averaged.
bool Engine::is_at_x() const {
  for (size_t b = 0; training_ && b < state_->layout().buckets.size(); ++b) {
    if (state_->interpolation(static_cast<int64_t>(b), Point::y).weight != 0) return false;
  }
  return true;
}

void Engine::enter_no_sync() { reducer_->enter_no_sync(); }

void Engine::leave_no_sync() { reducer_->leave_no_sync(); }

}  // namespace zerosched::detail
