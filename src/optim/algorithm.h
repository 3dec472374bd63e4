#pragma once

#include "kernels/step_scalars.h"
#include "optim/group_state.h"

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace zerosched::detail {

/// A flat vector of state per shard, in the kernels' state dtype.
struct StateTensor {
  std::string name;           ///< as full_state() and checkpoints call it
  bool starts_at_parameters;  ///< else at zero
};

struct PreparedStep {
  kernels::StepScalars scalars;  ///< grad_scale is the engine's to fill in
  GroupState next;               ///< the group's state once the step is done
};

/// Where parameters can be put: y while training, x for evaluation.
enum class Point { y, x };

/// Parameters as lerp(x, z, weight) of two tensors of the state, by index; weight 0 gives x exactly.
struct Interpolation {
  size_t x, z;
  double weight;
};

/// What a step depends on of an algorithm that takes the loss; of all ranks.
struct LossMeasure {
  double loss = 0;           ///< averaged over ranks
  double gradient_l1 = 0;    ///< the sum of |g|, of the averaged gradient, clipped
  double inner_product = 0;  ///< <g, z - x>, weighed by each group's inner_product_weight()
};

/// Where an option lies in an options object.
struct OptionField {
  const char* name;
  std::variant<double*, int64_t*, bool*> value;
  /// What it is in checkpoints from before the option was there; nullopt: it is in all of them.
  std::optional<double> if_absent = std::nullopt;
};

/// An optimizer's arithmetic: the scalars of a step, and the rule that takes them. Knows nothing of ranks.
class Algorithm {
 public:
  virtual ~Algorithm() = default;

  /// The public class's name.
  virtual const char* name() const = 0;
  virtual kernels::Rule rule() const = 0;
  /// In the rule's order. This and rule() are the same for the life of an optimizer, from settle() on.
  virtual const std::vector<StateTensor>& state() const = 0;
  /// Settles what rule() and state() depend on, by the options of every group at construction, which have been checked.
  virtual void settle(const std::vector<const torch::optim::OptimizerOptions*>& /*options*/) {}

  /// Throws if the options are of another optimizer or out of range; names the option.
  virtual void check(const torch::optim::OptimizerOptions& options) const = 0;

  /// Every option, in an order of its own.
  virtual std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const = 0;

  /// What fields() point at: for comparison across ranks, and for checkpoints.
  OptionValues values(const torch::optim::OptimizerOptions& options) const;
  /// The inverse of values(). Throws, without changing anything, unless `values` has exactly these options, but for those
  /// that may be absent.
  void assign(torch::optim::OptimizerOptions& options, const OptionValues& values) const;

  /// Changes nothing: a step that is skipped after this leaves no trace.
  virtual PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const = 0;

  /// Whether a step depends on the loss; then prepare_by_loss() is what makes it.
  virtual bool takes_loss() const { return false; }
  /// Of a group's elements in LossMeasure::inner_product.
  virtual double inner_product_weight(
      const torch::optim::OptimizerOptions& /*options*/, const GroupState& /*state*/) const {
    return 0;
  }
  virtual PreparedStep prepare_by_loss(const torch::optim::OptimizerOptions& options, const GroupState& state,
      const LossMeasure& /*measure*/) const {
    return prepare(options, state);
  }

  /// How the state gives the parameters at `point`.
  virtual Interpolation interpolation(Point point, const GroupState& state) const = 0;
};

}  // namespace zerosched::detail
