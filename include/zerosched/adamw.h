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

/// Options of AdamW: names and defaults of torch::optim::AdamW.
struct ZEROSCHED_EXPORT AdamWOptions : public torch::optim::OptimizerCloneableOptions<AdamWOptions> {
  /// The defaults but for the learning rate.
  AdamWOptions(double lr = 1e-3);
  /// The learning rate.
  TORCH_ARG(double, lr) = 1e-3;
  /// As in torch::optim.
  typedef std::tuple<double, double> betas_t;
  /// (decay of m, decay of v).
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  /// Added to the square root of the bias-corrected v.
  TORCH_ARG(double, eps) = 1e-8;
  /// Decoupled.
  TORCH_ARG(double, weight_decay) = 1e-2;

 public:
  /// @{
  /// What torch::optim::OptimizerOptions asks of its classes.
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override;
  void set_lr(double lr) override;
  /// @}
};

/// AdamW (arXiv 1711.05101) without Schedule-Free, sharded: what Schedule-Free is compared with, to be used
/// with a learning-rate schedule. x and y are the same. State: x, m and v, 12 bytes per parameter over all
/// ranks (24 for float64). Bias is corrected by the steps of the group; torch::optim::AdamW counts those in
/// which a parameter had a gradient.
class ZEROSCHED_EXPORT AdamW : public ShardedOptimizer {
 public:
  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws
  /// on every rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or
  /// parameters.
  AdamW(Trainable what, std::shared_ptr<Communicator> communicator, AdamWOptions options = {},
      ShardingOptions sharding = {});

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept:
  /// see Trainable::grouped(). Collective. Throws as above.
  AdamW(const Trainable& module, std::vector<ParameterGroup> groups,
      std::shared_ptr<Communicator> communicator, AdamWOptions options = {}, ShardingOptions sharding = {});
};

}  // namespace zerosched
