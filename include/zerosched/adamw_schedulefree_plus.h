#pragma once

#include <zerosched/optimizer_of.h>

#include <torch/arg.h>

namespace zerosched {

/// Options of AdamWScheduleFreePlus: names and defaults of AdamCScheduleFreePlusPaper in facebookresearch/schedule_free.
struct ZEROSCHED_EXPORT AdamWScheduleFreePlusOptions : OptionsOf<AdamWScheduleFreePlusOptions> {
  AdamWScheduleFreePlusOptions(double lr = 1) : lr_(lr) {}  ///< the defaults but for lr
  TORCH_ARG(double, lr) = 1;  ///< a factor of the step size that the loss gives; at least eps is used
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.95);  ///< (decay of m, decay of v)
  TORCH_ARG(double, sf_beta1) = 0.9;  ///< weight of x in y: the beta1 of AdamWScheduleFree
  TORCH_ARG(
      double, sf_beta1_max) = 0.965;  ///< what it has grown to after sf_beta1_anneal_steps, in which ...
  TORCH_ARG(int64_t,
      sf_beta1_anneal_steps) = 0;  ///< ... 1 - sf_beta1 shrinks evenly in its logarithm; 0: not at all
  TORCH_ARG(double, eps) = 1e-8;   ///< added to the root of the bias-corrected v
  TORCH_ARG(
      double, weight_decay) = 0;  ///< decoupled, taken at y, times the square of the step size: 20 to 50
  TORCH_ARG(double, r) = 0;       ///< step k weighs (k+1)^r in the average x
  TORCH_ARG(double, weight_lr_power) = 2;  ///< and the largest step size so far to this power
  TORCH_ARG(double, polyak_beta) = 0;  ///< decay of a mean of the gradient's L1 norm, which divides the loss
  TORCH_ARG(int64_t, c_warmup) = 0;    ///< steps in which x is z, and after which the average begins

 public:
  std::vector<Option> list() override;

 protected:
  void check_together() const override;
};

/// ScheduleFree+ (arXiv 2605.19095), sharded: Schedule-Free AdamW with momentum, whose step size is Polyak's, made of the
/// loss, so that there is no learning rate to tune either: loss.backward(); optimizer.step(loss);
///
/// The loss is taken as that of a minimum of 0, which losses that cannot come near 0 are not: lr below 1 makes up for some
/// of that. State: z, x, m and v, 16 bytes per parameter over all ranks (32 for float64).
class ZEROSCHED_EXPORT AdamWScheduleFreePlus
    : public OptimizerOf<AdamWScheduleFreePlus, AdamWScheduleFreePlusOptions> {
 public:
  using OptimizerOf::OptimizerOf;

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

 private:
  friend OptimizerOf;
  static std::unique_ptr<detail::Algorithm> make_algorithm();
};

}  // namespace zerosched
