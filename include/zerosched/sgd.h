#pragma once

#include <zerosched/export.h>
#include <zerosched/sharded_optimizer.h>
#include <zerosched/trainable.h>

#include <torch/arg.h>
#include <torch/optim/optimizer.h>

#include <memory>
#include <vector>

namespace zerosched {

/// Options of SGD: names and defaults of torch::optim::SGD.
struct ZEROSCHED_EXPORT SGDOptions : public torch::optim::OptimizerCloneableOptions<SGDOptions> {
  /// The defaults but for the learning rate.
  SGDOptions(double lr = 1e-3);
  /// The learning rate.
  TORCH_ARG(double, lr) = 1e-3;
  /// Decay of the momentum buffer.
  TORCH_ARG(double, momentum) = 0;
  /// Added to the gradient.
  TORCH_ARG(double, weight_decay) = 0;
  /// Nesterov momentum; needs a momentum.
  TORCH_ARG(bool, nesterov) = false;

 public:
  /// @{
  /// What torch::optim::OptimizerOptions asks of its classes.
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override;
  void set_lr(double lr) override;
  /// @}
};

/// SGD with momentum, as torch::optim::SGD without dampening, sharded: what Schedule-Free is compared with. x
/// and y are the same. State: x and m, the momentum buffer, 8 bytes per parameter over all ranks (16 for
/// float64).
class ZEROSCHED_EXPORT SGD : public ShardedOptimizer {
 public:
  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws
  /// on every rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or
  /// parameters.
  SGD(Trainable what, std::shared_ptr<Communicator> communicator, SGDOptions options = {},
      ShardingOptions sharding = {});

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept:
  /// see Trainable::grouped(). Collective. Throws as above.
  SGD(const Trainable& module, std::vector<ParameterGroup> groups, std::shared_ptr<Communicator> communicator,
      SGDOptions options = {}, ShardingOptions sharding = {});
};

}  // namespace zerosched
