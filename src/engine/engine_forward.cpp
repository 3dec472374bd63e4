// What of Engine is about y that is still on its way when step() has returned: ShardingOptions::overlap_forward.
#include "engine/engine.h"

#include <algorithm>
#include <exception>
#include <vector>

namespace zerosched::detail {

// Peers may be on their way into collectives.
template <typename Wait>
void Engine::wait_for_y(const Wait& wait) {
  if (!gathers_) return;
  try {
    wait(*gathers_);
  } catch (const std::exception& error) {
    if (communicator_->size() > 1) give_up(error);
    throw;
  }
}

std::unique_ptr<device::DeviceScope> Engine::enter() {
  auto use = state_->executor().enter();
  decide();
  wait_for_y([](ParameterGathers& gathers) { gathers.wait_all(); });
  return use;
}

void Engine::settle() {
  if (!may_be_in_flight() && !undecided_) return;
  const auto use = enter();
}

void Engine::ready(at::TensorList tensors) {
  if (!may_be_in_flight()) return;
  // Throws in a stream that is being captured, which is no failure of this rank: a graph would not wait when replayed.
  const auto use = state_->executor().visit();
  wait_for_y([&](ParameterGathers& gathers) { gathers.wait(tensors); });
}

// Forward wants first what backward gives last.
void Engine::launch_gathers() {
  std::vector<int64_t> buckets = reducer_->order();
  std::reverse(buckets.begin(), buckets.end());
  gathers_->launch(buckets, reducer_->round());
}

// Of the step that is to begin.
void Engine::begin_timings() {
  timings_ = {};
  if (gathers_) timings_.wait_ready = timings_.wait_all_gather = gathers_->take_waited_seconds();
}

}  // namespace zerosched::detail
