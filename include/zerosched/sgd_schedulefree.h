#pragma once

#include <zerosched/optimizer_of.h>

#include <torch/arg.h>

namespace zerosched {

/// Options of SGDScheduleFree: names and defaults of the Python package schedulefree.
struct ZEROSCHED_EXPORT SGDScheduleFreeOptions : OptionsOf<SGDScheduleFreeOptions> {
  SGDScheduleFreeOptions(double lr = 1.0) : lr_(lr) {}  ///< the defaults but for lr
  TORCH_ARG(double, lr) = 1.0;                          ///< after warmup
  TORCH_ARG(double, momentum) = 0.9;  ///< weight of x in y: 0 is Polyak-Ruppert averaging, 1 primal averaging
  TORCH_ARG(double, weight_decay) = 0;     ///< decoupled, taken at y
  TORCH_ARG(int64_t, warmup_steps) = 0;    ///< steps of linear warmup of lr
  TORCH_ARG(double, r) = 0;                ///< step k weighs (k+1)^r in the average x
  TORCH_ARG(double, weight_lr_power) = 2;  ///< and lr_max^weight_lr_power

 public:
  std::vector<Option> list() override;
};

/// Schedule-Free SGD ("The Road Less Scheduled", arXiv 2405.15682), sharded. State: z and x, 8 bytes per parameter over all
/// ranks (16 for float64).
class ZEROSCHED_EXPORT SGDScheduleFree : public OptimizerOf<SGDScheduleFree, SGDScheduleFreeOptions> {
 public:
  using OptimizerOf::OptimizerOf;

 private:
  friend OptimizerOf;
  static std::unique_ptr<detail::Algorithm> make_algorithm();
};

}  // namespace zerosched
