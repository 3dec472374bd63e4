#pragma once

#include "device/runtime.h"
#include "engine/optimizer_state.h"

#include <zerosched/communicator.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace zerosched::detail {

/// An optimizer as checkpoints and exports see it: its state, and what stands before it.
class Savable {
 public:
  virtual ~Savable() = default;

  virtual OptimizerState& state() = 0;
  virtual const std::shared_ptr<Communicator>& communicator() const = 0;
  /// Throws what a hook or a peer has reported since the last call. Local.
  virtual void check() const = 0;
  /// Begins a use of the parameters and the state, in a stream that comes after all uses before, and after all of y has
  /// been gathered: what every call from outside begins with that may touch either. The result ends it. Local.
  [[nodiscard]] virtual std::unique_ptr<device::DeviceScope> enter() = 0;
  /// Why the state cannot be saved now; empty if it can. Local.
  virtual std::string why_not_savable() const = 0;
  /// Why the state cannot be replaced now; empty if it can. Local.
  virtual std::string why_not_replaceable() const = 0;
  /// Throws on every rank if parameters were written by others since the optimizer last wrote them, or if ranks have
  /// stepped with unlike options. `caller` begins the message: "save_checkpoint: ". Collective.
  virtual void check_in_step(const std::string& caller) = 0;
  /// To be called before the whole module is used as one: buffers become the same on all ranks, and what is not
  /// trained is warned of. Collective.
  virtual void settle_module() = 0;
  /// OptimizerState::gathered(), whose errors on one rank all hear of. Collective.
  virtual at::Tensor gathered(int64_t bucket, Point point) = 0;
  /// To be called once the shards have been overwritten. Collective.
  virtual void state_was_replaced(std::vector<GroupState> groups, bool is_finite) = 0;
  /// ShardedOptimizer::reset_from_parameters(). Collective.
  virtual void reset_from_parameters() = 0;
};

}  // namespace zerosched::detail
