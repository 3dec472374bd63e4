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

/// Options of GPAAdamW: names and defaults of facebookresearch/optimizers, folder gpa.
struct ZEROSCHED_EXPORT GPAAdamWOptions : public torch::optim::OptimizerCloneableOptions<GPAAdamWOptions> {
  /// The defaults but for the learning rate.
  GPAAdamWOptions(double lr = 1e-3);
  /// The learning rate after warmup. A schedule may still help.
  TORCH_ARG(double, lr) = 1e-3;
  /// As in torch::optim.
  typedef std::tuple<double, double> betas_t;
  /// (decay of m, decay of v).
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  /// Added to the square root of the bias-corrected v.
  TORCH_ARG(double, eps) = 1e-8;
  /// Decoupled, taken at z.
  TORCH_ARG(double, weight_decay) = 0;
  /// Weight of x in y, where gradients are taken.
  TORCH_ARG(double, train_interp_coeff) = 0.7;
  /// What x keeps of itself in every step: 1 - 1/n averages over some n steps.
  TORCH_ARG(double, eval_interp_coeff) = 0.9967;
  /// Steps of linear warmup of lr.
  TORCH_ARG(int64_t, warmup_steps) = 0;

 public:
  /// @{
  /// What torch::optim::OptimizerOptions asks of its classes.
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override;
  void set_lr(double lr) override;
  /// @}
};

/// Generalized primal averaging over AdamW (arXiv 2512.17131), sharded: as AdamWScheduleFree, but that x is an
/// exponential average whose length does not grow, and that z moves along a mean of the gradients. With both coefficients
/// 0 it is AdamW. State: z, x, m and v, 16 bytes per parameter over all ranks (32 for float64).
class ZEROSCHED_EXPORT GPAAdamW : public ShardedOptimizer {
 public:
  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws
  /// on every rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or
  /// parameters.
  GPAAdamW(Trainable what, std::shared_ptr<Communicator> communicator, GPAAdamWOptions options = {},
      ShardingOptions sharding = {});

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept:
  /// see Trainable::grouped(). Collective. Throws as above.
  GPAAdamW(const Trainable& module, std::vector<ParameterGroup> groups,
      std::shared_ptr<Communicator> communicator, GPAAdamWOptions options = {},
      ShardingOptions sharding = {});
};

}  // namespace zerosched
