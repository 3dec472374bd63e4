#pragma once

#include "kernels/step_scalars.h"
#include "optim/group_state.h"

#include <zerosched/listed_options.h>

#include <string>
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

/// An optimizer's arithmetic: its options' meaning in the scalars of a step, and the rule that takes them. Knows nothing of
/// ranks.
class Algorithm {
 public:
  using Options = torch::optim::OptimizerOptions;

  /// `name` is the public class's.
  Algorithm(const char* name, kernels::Rule rule);
  virtual ~Algorithm() = default;

  const char* name() const { return name_; }
  /// This and state() are the same for the life of an optimizer, from settle() on.
  kernels::Rule rule() const { return rule_; }
  /// In the rule's order.
  const std::vector<StateTensor>& state() const { return state_; }
  /// Settles the rule by the options of every group at construction, which have been checked.
  virtual void settle(const std::vector<const Options*>& /*options*/) {}

  /// Throws if the options are of another optimizer, out of range or changed as they may not be; names the option.
  virtual void check(const Options& options) const;
  /// Names and numbers, for comparison across ranks, and for checkpoints.
  OptionValues values(const Options& options) const;
  /// The inverse of values(). Throws, without changing anything, unless `values` has exactly these options, but for those
  /// that may be absent.
  void assign(Options& options, const OptionValues& values) const;

  /// Changes nothing: a step that is skipped after this leaves no trace.
  virtual PreparedStep prepare(const Options& options, const GroupState& state) const = 0;

  /// Whether a step depends on the loss; then prepare_by_loss() is what makes it.
  virtual bool takes_loss() const { return false; }
  /// Of a group's elements in LossMeasure::inner_product.
  virtual double inner_product_weight(const Options& /*options*/, const GroupState& /*state*/) const {
    return 0;
  }
  virtual PreparedStep prepare_by_loss(
      const Options& options, const GroupState& state, const LossMeasure& /*measure*/) const {
    return prepare(options, state);
  }

  /// How the state gives the parameters at `point`.
  Interpolation interpolation(Point point, const GroupState& state) const;

 protected:
  void use_rule(kernels::Rule rule);
  /// Whether options are of this optimizer's type.
  virtual bool takes(const Options& options) const = 0;
  const ListedOptions& checked(const Options& options) const;

 private:
  const char* name_;
  kernels::Rule rule_;
  std::vector<StateTensor> state_;
};

/// An algorithm whose steps a function prepares: what most are.
template <typename OptionsType>
class AlgorithmOf : public Algorithm {
 public:
  using Prepare = PreparedStep (*)(const OptionsType&, const GroupState&);

  AlgorithmOf(const char* name, kernels::Rule rule, Prepare prepare)
      : Algorithm(name, rule), prepare_(prepare) {}

  PreparedStep prepare(const Options& options, const GroupState& state) const override {
    return prepare_(of(options), state);
  }

 protected:
  /// Options that have been checked.
  static const OptionsType& of(const Options& options) { return static_cast<const OptionsType&>(options); }
  bool takes(const Options& options) const override {
    return dynamic_cast<const OptionsType*>(&options) != nullptr;
  }

 private:
  Prepare prepare_;
};

}  // namespace zerosched::detail
