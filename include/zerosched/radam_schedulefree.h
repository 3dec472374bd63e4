#pragma once

#include <zerosched/optimizer_of.h>

#include <torch/arg.h>

namespace zerosched {

/// Options of RAdamScheduleFree: names and defaults of the Python package schedulefree.
struct ZEROSCHED_EXPORT RAdamScheduleFreeOptions : OptionsOf<RAdamScheduleFreeOptions> {
  RAdamScheduleFreeOptions(double lr = 0.0025) : lr_(lr) {}  ///< the defaults but for lr
  TORCH_ARG(double, lr) = 0.0025;                            ///< once the rectification has reached 1
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);   ///< (weight of x in y, decay of v)
  TORCH_ARG(double, eps) = 1e-8;                             ///< added to the root of the bias-corrected v
  TORCH_ARG(double, weight_decay) = 0;                       ///< decoupled, taken at y
  TORCH_ARG(double, r) = 0;                                  ///< step k weighs (k+1)^r in the average x
  TORCH_ARG(double, weight_lr_power) = 2;                    ///< and lr_max^weight_lr_power
  TORCH_ARG(bool, silent_sgd_phase) =
      true;  ///< first steps, while the variance of v is unknown, move nothing; false: SGD

 public:
  std::vector<Option> list() override;
};

/// Schedule-Free RAdam, in the form of the Python package schedulefree, sharded: the rectification of RAdam (arXiv
/// 1908.03265) in place of warmup. State: z, x and v, 12 bytes per parameter over all ranks (24 for float64).
class ZEROSCHED_EXPORT RAdamScheduleFree : public OptimizerOf<RAdamScheduleFree, RAdamScheduleFreeOptions> {
 public:
  using OptimizerOf::OptimizerOf;

 private:
  friend OptimizerOf;
  static std::unique_ptr<detail::Algorithm> make_algorithm();
};

}  // namespace zerosched
