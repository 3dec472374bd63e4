#pragma once

#include "kernels/update.h"

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// A flat vector of state per shard, in the kernels' state dtype.
struct StateTensor {
  std::string name;           ///< as full_state() and checkpoints call it
  bool starts_at_parameters;  ///< else at zero
};

/// What a parameter group carries from step to step; the same on every rank.
struct GroupState {
  int64_t k = 0;  ///< steps done
  double weight_sum = 0;
  double lr_max = -1;
  double y_weight = 0;  ///< 1 - beta1 of the step that made y: y = lerp(x, z, y_weight)
};

struct PreparedStep {
  kernels::StepScalars scalars;  ///< grad_scale is the engine's to fill in
  GroupState next;               ///< the group's state once the step is done
};

/// Where parameters can be put: y while training, x for evaluation.
enum class Point { y, x };

/// Options by name, numbers and flags alike as double.
using OptionValues = std::vector<std::pair<std::string, double>>;

/// An optimizer's arithmetic: the scalars of a step, and the rule that takes them. Knows nothing of ranks.
class Algorithm {
 public:
  virtual ~Algorithm() = default;

  /// The public class's name.
  virtual const char* name() const = 0;
  virtual kernels::Rule rule() const = 0;
  /// In the rule's order.
  virtual const std::vector<StateTensor>& state() const = 0;

  /// Throws if the options are of another optimizer or out of range; names the option.
  virtual void check(const torch::optim::OptimizerOptions& options) const = 0;

  /// Every option, for comparison across ranks.
  virtual OptionValues values(const torch::optim::OptimizerOptions& options) const = 0;

  /// Changes nothing: a step that is skipped after this leaves no trace.
  virtual PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const = 0;

  /// Writes `point`, rounded to range.param_dtype, to range.y. Reads state only.
  virtual void write_parameters(
      const kernels::UpdateRange& range, Point point, const GroupState& state) const = 0;
};

}  // namespace zerosched::detail
