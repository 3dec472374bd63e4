// What Engine does about the module around its parameters, and about a successor over the same parameters.
#include "comm/message_of.h"
#include "engine/engine.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <exception>

namespace zerosched::detail {

void Engine::settle_module() {
  const at::NoGradGuard no_grad;
  const auto use = executor_->enter();
  buffer_sync_->run();
  untrained_->run(groups_.front().k > first_k_, [this] { return reducer_->used_so_far(); });
}

void Engine::hand_over() noexcept {
  hooks_.clear();
  finish_in_flight();
}

// Peers may have launched buckets that this rank has not: completes what was begun.
void Engine::finish_in_flight() noexcept {
  try {
    const auto use = executor_->enter();
    if (communicator_->failure().empty() && reducer_->in_flight()) reducer_->drop(true);
  } catch (const std::exception& error) {
    TORCH_WARN("zerosched: gradients in flight at an optimizer's end: ", message_of(error));
  }
}

}  // namespace zerosched::detail
