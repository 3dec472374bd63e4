// What Engine does about the module around its parameters, and about a successor over the same parameters.
#include "base/message_of.h"
#include "comm/member.h"
#include "engine/engine.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>

#include <exception>

namespace zerosched::detail {

void Engine::settle_module() {
  const at::NoGradGuard no_grad;
  tell_peers_outside_round([&] {
    const auto use = enter();
    ParameterClaim::settle(state_->model().frozen);  // what of the module other optimizers train
    buffer_sync_->run();
    untrained_->run(state_->groups().front().k > first_k_, [this] { return reducer_->used_so_far(); });
  });
}

// Every rank makes the successor, but gradients may be in flight on some only.
void Engine::hand_over() noexcept {
  hooks_.clear();
  try {
    if (!communicator_->failure().empty()) return;
    at::Tensor in_flight = at::full({1}, reducer_->in_flight() ? 1 : 0, at::kLong);
    communicator_->all_reduce(in_flight, ReduceOp::max, {"gradients of a replaced optimizer"})->wait();
    if (in_flight.item<int64_t>() == 0) return;
    const auto use = state_->executor().enter();
    reducer_->drop(true, /*everywhere=*/true);
  } catch (const std::exception& error) {
    TORCH_WARN("zerosched: gradients in flight when an optimizer was replaced: ", message_of(error));
  }
}

// Of optimizers that train a part of the module by now: a predecessor, or others beside this one. What has failed there
// need not keep this one from being made.
void Engine::settle_others() noexcept {
  try {
    ParameterClaim::settle(state_->model().parameters);
    ParameterClaim::settle(state_->model().frozen);
  } catch (const std::exception& error) {
    TORCH_WARN("zerosched: parameters on their way when an optimizer was constructed: ", message_of(error));
  }
}

// What fails at the end keeps nobody from ending.
template <typename Action>
void Engine::finish(const char* what, const Action& action) noexcept {
  try {
    const auto use = state_->executor().enter();
    if (communicator_->failure().empty()) action();
  } catch (const std::exception& error) {
    TORCH_WARN("zerosched: ", what, " at an optimizer's end: ", message_of(error));
  }
}

// Somebody may ask when this is gone.
void Engine::finish_deciding(bool wait) noexcept {
  if (!undecided_) return;
  const auto outcome = undecided_->outcome;
  if (wait) finish("the last step", [&] { decide(); });
  if (outcome->kind == StepOutcome::Kind::undecided) outcome->set(StepOutcome::Kind::skipped);
}

void Engine::finish_in_flight() noexcept {
  finish("parameters on their way", [&] {
    if (gathers_) gathers_->wait_all();
  });
  // Peers may have launched buckets that this rank has not: completes what was begun.
  finish("gradients in flight", [&] {
    if (reducer_->in_flight()) reducer_->drop(true);
  });
  // What a device has yet to make of the last step, and to say of it. To have ended well is to have all parameters.
  if (!late_reports_) return;
  finish("the last step", [&] {
    late_reports_->send({}, {}, {state_->groups().front().k, {}, {}, -1, {}, false});
    read_late_reports(true);
  });
}

// Ranks that go on without this one are told at once; if none does, as where all have caught the same exception, nothing
// has failed.
void Engine::leave_ranks(bool unwinding) noexcept {
  if (communicator_->size() == 1) return;
  const std::string rank = "rank " + std::to_string(communicator_->rank());
  if (!unwinding) {
    leave(*communicator_,
        rank + " has ended this optimizer, " + name_ + ", after " +
            std::to_string(state_->groups().front().k - first_k_ + skipped_steps_ - first_skipped_) +
            " steps; every rank must make the same number of steps, or use join()");
    return;
  }
  const std::string why = rank + ": an exception ended the scope of its optimizer; that rank says which.";
  if (!leave(*communicator_, why)) communicator_->abort(why);
}

}  // namespace zerosched::detail
