#pragma once

#include "kernels/update.h"

#include <c10/core/ScalarType.h>
#include <torch/optim/optimizer.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace zerosched::detail {

inline constexpr size_t kMaxStateTensors = 3;

/// A flat vector of state per shard, in the kernels' state dtype.
struct StateTensor {
  std::string name;            ///< as full_state() and checkpoints call it
  bool starts_at_parameters;   ///< else at zero
};

/// What a parameter group carries from step to step; the same on every rank.
struct GroupState {
  int64_t k = 0;           ///< steps done
  double weight_sum = 0;
  double lr_max = -1;
  double y_weight = 0;     ///< 1 - beta1 of the step that made y: y = lerp(x, z, y_weight)
};

struct PreparedStep {
  kernels::ScheduleFreeScalars scalars;  ///< grad_scale is the engine's to fill in
  GroupState next;                       ///< the group's state once the step is done
};

/// A range of a shard: pointers to its first element, as kernels::AdamWScheduleFreeRange.
struct ShardRange {
  c10::ScalarType param_dtype;
  c10::ScalarType grad_dtype;
  void* parameters;
  const void* gradients;
  std::array<void*, kMaxStateTensors> state;  ///< in the order of Algorithm::state()
  int64_t numel;
};

/// Where parameters can be put: y while training, x for evaluation.
enum class Point { y, x };

/// An update rule: the scalars of a step, and the kernel that takes them. Knows nothing of ranks.
class Algorithm {
 public:
  virtual ~Algorithm() = default;

  virtual const std::vector<StateTensor>& state() const = 0;

  /// Throws if the options are of another optimizer or out of range; names the option.
  virtual void check(const torch::optim::OptimizerOptions& options) const = 0;

  /// Name and every option, for comparison across ranks.
  virtual std::string describe(const torch::optim::OptimizerOptions& options) const = 0;

  /// Changes nothing: a step that is skipped after this leaves no trace.
  virtual PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const = 0;

  virtual void update(const ShardRange& range, const kernels::ScheduleFreeScalars& scalars) const = 0;

  /// Writes `point`, rounded to range.param_dtype, to range.parameters. Reads state only.
  virtual void write_parameters(const ShardRange& range, Point point, const GroupState& state) const = 0;
};

}  // namespace zerosched::detail
