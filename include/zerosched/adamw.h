#pragma once

#include <zerosched/export.h>
#include <zerosched/sharded_optimizer.h>

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
  /// Over the parameters of `module`, under their names, and its buffers. Collective. Throws on every rank if an
  /// option is out of range, or if ranks differ in options or parameters.
  AdamW(const torch::nn::Module& module, std::shared_ptr<Communicator> communicator,
      AdamWOptions options = {}, ShardingOptions sharding = {});

  /// Over groups with options of their own. Module buffers are not known here and not broadcast. Collective.
  /// Throws as above, and if a parameter or a name is in two places.
  AdamW(std::vector<ParameterGroup> groups, std::shared_ptr<Communicator> communicator,
      AdamWOptions options = {}, ShardingOptions sharding = {});
};

}  // namespace zerosched
