#pragma once

#include <zerosched/optimizer_of.h>

#include <torch/arg.h>

namespace zerosched {

/// Options of AdamWScheduleFree: names and defaults of the Python package schedulefree, and two that it has not.
struct ZEROSCHED_EXPORT AdamWScheduleFreeOptions : OptionsOf<AdamWScheduleFreeOptions> {
  AdamWScheduleFreeOptions(double lr = 0.0025) : lr_(lr) {}  ///< the defaults but for lr
  TORCH_ARG(double, lr) = 0.0025;                            ///< after warmup
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);   ///< (weight of x in y, decay of v)
  TORCH_ARG(double, eps) = 1e-8;                             ///< added to the root of the bias-corrected v
  TORCH_ARG(double, weight_decay) = 0;                       ///< decoupled, taken at y
  TORCH_ARG(int64_t, warmup_steps) = 0;                      ///< steps of linear warmup of lr
  TORCH_ARG(double, r) = 0;                                  ///< step k weighs (k+1)^r in the average x
  TORCH_ARG(double, weight_lr_power) = 2;                    ///< and lr_max^weight_lr_power
  /// Refined Schedule-Free (arXiv 2507.09846): z weighs (1 - beta1) times this times its share of the weights in x. 0: off.
  TORCH_ARG(double, refinement) = 0;
  /// Decay of a mean of gradients along which z moves. 0: off, in all groups for good if in all at construction.
  TORCH_ARG(double, inner_momentum) = 0;

 public:
  std::vector<Option> list() override;

 protected:
  void check_together() const override;
};

/// Schedule-Free AdamW ("The Road Less Scheduled", arXiv 2405.15682), in the form of the authors' Python package, sharded.
/// beta1 = 0 is Polyak-Ruppert averaging, 1 primal averaging. State: z, x and v, 12 bytes per parameter over all ranks (24
/// for float64); with inner momentum m, too.
class ZEROSCHED_EXPORT AdamWScheduleFree : public OptimizerOf<AdamWScheduleFree, AdamWScheduleFreeOptions> {
 public:
  using OptimizerOf::OptimizerOf;

 private:
  friend OptimizerOf;
  static std::unique_ptr<detail::Algorithm> make_algorithm();
};

}  // namespace zerosched
