#pragma once

#include <zerosched/optimizer_of.h>

#include <torch/arg.h>

namespace zerosched {

/// Options of AdamW: names and defaults of torch::optim::AdamW.
struct ZEROSCHED_EXPORT AdamWOptions : OptionsOf<AdamWOptions> {
  AdamWOptions(double lr = 1e-3) : lr_(lr) {}               ///< the defaults but for lr
  TORCH_ARG(double, lr) = 1e-3;                             ///< the learning rate
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);  ///< (decay of m, decay of v)
  TORCH_ARG(double, eps) = 1e-8;                            ///< added to the root of the bias-corrected v
  TORCH_ARG(double, weight_decay) = 1e-2;                   ///< decoupled

 public:
  std::vector<Option> list() override;
};

/// AdamW (arXiv 1711.05101) without Schedule-Free, sharded: what Schedule-Free is compared with, to be used with a
/// learning-rate schedule. x and y are the same. State: x, m and v, 12 bytes per parameter over all ranks (24 for float64).
/// Bias is corrected by the steps of the group; torch::optim::AdamW counts those in which a parameter had a gradient.
class ZEROSCHED_EXPORT AdamW : public OptimizerOf<AdamW, AdamWOptions> {
 public:
  using OptimizerOf::OptimizerOf;

 private:
  friend OptimizerOf;
  static std::unique_ptr<detail::Algorithm> make_algorithm();
};

}  // namespace zerosched
