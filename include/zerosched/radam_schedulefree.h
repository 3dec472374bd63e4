#pragma once

#include <zerosched/export.h>
#include <zerosched/sharded_optimizer.h>
#include <zerosched/trainable.h>

#include <torch/arg.h>
#include <torch/optim/optimizer.h>

#include <memory>
#include <tuple>
#include <vector>

namespace zerosched {

/// Options of RAdamScheduleFree: names and defaults of the Python package schedulefree.
struct ZEROSCHED_EXPORT RAdamScheduleFreeOptions
    : public torch::optim::OptimizerCloneableOptions<RAdamScheduleFreeOptions> {
  /// The defaults but for the learning rate.
  RAdamScheduleFreeOptions(double lr = 0.0025);
  /// The learning rate once the rectification has reached 1.
  TORCH_ARG(double, lr) = 0.0025;
  /// As in torch::optim.
  typedef std::tuple<double, double> betas_t;
  /// (weight of x in y, decay of v). beta1 = 0 is Polyak-Ruppert averaging, beta1 = 1 primal averaging.
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  /// Added to the square root of the bias-corrected v.
  TORCH_ARG(double, eps) = 1e-8;
  /// Decoupled, taken at y.
  TORCH_ARG(double, weight_decay) = 0;
  /// Step k weighs (k+1)^r in the average x.
  TORCH_ARG(double, r) = 0;
  /// Step k also weighs lr_max^weight_lr_power in the average x.
  TORCH_ARG(double, weight_lr_power) = 2;
  /// true: the first steps, while the variance of v is unknown, move nothing; false: they are steps of SGD.
  TORCH_ARG(bool, silent_sgd_phase) = true;

 public:
  /// @{
  /// What torch::optim::OptimizerOptions asks of its classes.
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override;
  void set_lr(double lr) override;
  /// @}
};

/// Schedule-Free RAdam, in the form of the Python package schedulefree, sharded: the rectification of RAdam
/// (arXiv 1908.03265) in place of warmup. State: z, x and v, 12 bytes per parameter over all ranks (24 for
/// float64).
class ZEROSCHED_EXPORT RAdamScheduleFree : public ShardedOptimizer {
 public:
  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws
  /// on every rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or
  /// parameters.
  RAdamScheduleFree(Trainable what, std::shared_ptr<Communicator> communicator,
      RAdamScheduleFreeOptions options = {}, ShardingOptions sharding = {});

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept:
  /// see Trainable::grouped(). Collective. Throws as above.
  RAdamScheduleFree(const Trainable& module, std::vector<ParameterGroup> groups,
      std::shared_ptr<Communicator> communicator, RAdamScheduleFreeOptions options = {},
      ShardingOptions sharding = {});
};

}  // namespace zerosched
