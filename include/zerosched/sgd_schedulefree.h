#pragma once

#include <zerosched/export.h>
#include <zerosched/sharded_optimizer.h>
#include <zerosched/trainable.h>

#include <torch/arg.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace zerosched {

/// Options of SGDScheduleFree: names and defaults of the Python package schedulefree.
struct ZEROSCHED_EXPORT SGDScheduleFreeOptions
    : public torch::optim::OptimizerCloneableOptions<SGDScheduleFreeOptions> {
  /// The defaults but for the learning rate.
  SGDScheduleFreeOptions(double lr = 1.0);
  /// The learning rate after warmup.
  TORCH_ARG(double, lr) = 1.0;
  /// Weight of x in y. 0 is Polyak-Ruppert averaging, 1 primal averaging.
  TORCH_ARG(double, momentum) = 0.9;
  /// Decoupled, taken at y.
  TORCH_ARG(double, weight_decay) = 0;
  /// Steps of linear warmup of lr.
  TORCH_ARG(int64_t, warmup_steps) = 0;
  /// Step k weighs (k+1)^r in the average x.
  TORCH_ARG(double, r) = 0;
  /// Step k also weighs lr_max^weight_lr_power in the average x.
  TORCH_ARG(double, weight_lr_power) = 2;

 public:
  /// @{
  /// What torch::optim::OptimizerOptions asks of its classes.
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override;
  void set_lr(double lr) override;
  /// @}
};

/// Schedule-Free SGD ("The Road Less Scheduled", arXiv 2405.15682), sharded. State: z and x, 8 bytes per
/// parameter over all ranks (16 for float64).
class ZEROSCHED_EXPORT SGDScheduleFree : public ShardedOptimizer {
 public:
  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws
  /// on every rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or
  /// parameters.
  SGDScheduleFree(Trainable what, std::shared_ptr<Communicator> communicator,
      SGDScheduleFreeOptions options = {}, ShardingOptions sharding = {});

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept:
  /// see Trainable::grouped(). Collective. Throws as above.
  SGDScheduleFree(const Trainable& module, std::vector<ParameterGroup> groups,
      std::shared_ptr<Communicator> communicator, SGDScheduleFreeOptions options = {},
      ShardingOptions sharding = {});
};

}  // namespace zerosched
