#pragma once

#include <zerosched/export.h>
#include <zerosched/sharded_optimizer.h>
#include <zerosched/trainable.h>

#include <torch/arg.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

namespace zerosched {

/// Options of AdamWScheduleFree: names and defaults of the Python package schedulefree.
struct ZEROSCHED_EXPORT AdamWScheduleFreeOptions
    : public torch::optim::OptimizerCloneableOptions<AdamWScheduleFreeOptions> {
  /// The defaults but for the learning rate.
  AdamWScheduleFreeOptions(double lr = 0.0025);
  /// The learning rate after warmup.
  TORCH_ARG(double, lr) = 0.0025;
  /// As in torch::optim.
  typedef std::tuple<double, double> betas_t;
  /// (weight of x in y, decay of v). beta1 = 0 is Polyak-Ruppert averaging, beta1 = 1 primal averaging.
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  /// Added to the square root of the bias-corrected v.
  TORCH_ARG(double, eps) = 1e-8;
  /// Decoupled, taken at y.
  TORCH_ARG(double, weight_decay) = 0;
  /// Steps of linear warmup of lr.
  TORCH_ARG(int64_t, warmup_steps) = 0;
  /// Step k weighs (k+1)^r in the average x.
  TORCH_ARG(double, r) = 0;
  /// Step k also weighs lr_max^weight_lr_power in the average x.
  TORCH_ARG(double, weight_lr_power) = 2;
  /// Refined Schedule-Free (arXiv 2507.09846), which parts the length of the average from beta1: z weighs (1 - beta1) C
  /// times its share of the weights in x, at most 1, with C this number. 1/(1 - beta1) is the method without it, larger
  /// ones forget the start sooner. 0: off.
  TORCH_ARG(double, refinement) = 0;
  /// z moves along a running mean of the gradients with this decay, corrected for its start, instead of the gradient
  /// itself. 0: off. Not to be raised from 0 in all groups after construction, because the mean is another 4 bytes of state
  /// per parameter (8 for float64), which is there only if some group has it then.
  TORCH_ARG(double, inner_momentum) = 0;

 public:
  /// @{
  /// What torch::optim::OptimizerOptions asks of its classes.
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override;
  void set_lr(double lr) override;
  /// @}
};

/// Schedule-Free AdamW ("The Road Less Scheduled", arXiv 2405.15682), in the form of the authors' Python
/// package, sharded. State: z, x and v, 12 bytes per parameter over all ranks (24 for float64); with inner momentum m,
/// too.
class ZEROSCHED_EXPORT AdamWScheduleFree : public ShardedOptimizer {
 public:
  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws
  /// on every rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or
  /// parameters.
  AdamWScheduleFree(Trainable what, std::shared_ptr<Communicator> communicator,
      AdamWScheduleFreeOptions options = {}, ShardingOptions sharding = {});

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept:
  /// see Trainable::grouped(). Collective. Throws as above.
  AdamWScheduleFree(const Trainable& module, std::vector<ParameterGroup> groups,
      std::shared_ptr<Communicator> communicator, AdamWScheduleFreeOptions options = {},
      ShardingOptions sharding = {});
};

}  // namespace zerosched
