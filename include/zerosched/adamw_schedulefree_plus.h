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

/// Options of AdamWScheduleFreePlus: names and defaults of AdamCScheduleFreePlusPaper in facebookresearch/schedule_free.
struct ZEROSCHED_EXPORT AdamWScheduleFreePlusOptions
    : public torch::optim::OptimizerCloneableOptions<AdamWScheduleFreePlusOptions> {
  /// The defaults but for the factor.
  AdamWScheduleFreePlusOptions(double lr = 1);
  /// A factor of the step size that the loss gives. At least eps of it is used.
  TORCH_ARG(double, lr) = 1;
  /// As in torch::optim.
  typedef std::tuple<double, double> betas_t;
  /// (decay of m, decay of v).
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.95);
  /// Weight of x in y: the beta1 of AdamWScheduleFree.
  TORCH_ARG(double, sf_beta1) = 0.9;
  /// What sf_beta1 has grown to after sf_beta1_anneal_steps.
  TORCH_ARG(double, sf_beta1_max) = 0.965;
  /// Steps over which 1 - sf_beta1 shrinks, evenly in its logarithm, to 1 - sf_beta1_max. 0: it does not.
  TORCH_ARG(int64_t, sf_beta1_anneal_steps) = 0;
  /// Added to the square root of the bias-corrected v; also the least lr.
  TORCH_ARG(double, eps) = 1e-8;
  /// Decoupled, taken at y, and multiplied with the square of the step size: 20 to 50 are usual.
  TORCH_ARG(double, weight_decay) = 0;
  /// Step k weighs (k+1)^r in the average x.
  TORCH_ARG(double, r) = 0;
  /// Step k also weighs the largest step size so far to this power in the average x.
  TORCH_ARG(double, weight_lr_power) = 2;
  /// Decay of the running mean of the gradient's L1 norm, by which the loss is divided. 0: it is the step's own.
  TORCH_ARG(double, polyak_beta) = 0;
  /// Steps at the start in which x is z, and after which the average begins.
  TORCH_ARG(int64_t, c_warmup) = 0;

 public:
  /// @{
  /// What torch::optim::OptimizerOptions asks of its classes.
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override;
  void set_lr(double lr) override;
  /// @}
};

/// ScheduleFree+ (arXiv 2605.19095), sharded: Schedule-Free AdamW with momentum, whose step size is Polyak's, made of the
/// loss, so that there is no learning rate to tune either:
///
///     loss.backward();
///     optimizer.step(loss);
///
/// The loss is taken as that of a minimum of 0, which losses that cannot come near 0 are not: lr below 1 makes up for some
/// of that. State: z, x, m and v, 16 bytes per parameter over all ranks (32 for float64).
class ZEROSCHED_EXPORT AdamWScheduleFreePlus : public ShardedOptimizer {
 public:
  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws
  /// on every rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or
  /// parameters.
  AdamWScheduleFreePlus(Trainable what, std::shared_ptr<Communicator> communicator,
      AdamWScheduleFreePlusOptions options = {}, ShardingOptions sharding = {});

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept:
  /// see Trainable::grouped(). Collective. Throws as above.
  AdamWScheduleFreePlus(const Trainable& module, std::vector<ParameterGroup> groups,
      std::shared_ptr<Communicator> communicator, AdamWScheduleFreePlusOptions options = {},
      ShardingOptions sharding = {});

  /// With a closure, whose loss it takes. Without one, and without set_loss() before, it throws, but on ranks that gave
  /// the step the weight 0. Otherwise as ShardedOptimizer::step().
  using ShardedOptimizer::step;

  /// A step with this rank's loss, of one element: that of which backward has left the gradient, the sum of losses if
  /// there were several backward passes. It is averaged over ranks as gradients are: by step_weight(), if that is called.
  /// A loss that is not finite on some rank is as a gradient that is not. One all-reduce of three numbers more than other
  /// optimizers, for which a GPU's host waits. Collective. Throws as step(), and if the loss has not one element.
  void step(const torch::Tensor& loss);

  /// Gives the next step its loss, where it is not made here: GradScaler::step(). Without the loss scale. Local.
  void set_loss(const torch::Tensor& loss);
};

}  // namespace zerosched
