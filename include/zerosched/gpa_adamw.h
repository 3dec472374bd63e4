#pragma once

#include <zerosched/optimizer_of.h>

#include <torch/arg.h>

namespace zerosched {

/// Options of GPAAdamW: names and defaults of facebookresearch/optimizers, and a warmup.
struct ZEROSCHED_EXPORT GPAAdamWOptions : OptionsOf<GPAAdamWOptions> {
  GPAAdamWOptions(double lr = 1e-3) : lr_(lr) {}            ///< the defaults but for lr
  TORCH_ARG(double, lr) = 1e-3;                             ///< after warmup
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);  ///< (decay of m, decay of v)
  TORCH_ARG(double, eps) = 1e-8;                            ///< added to the root of the bias-corrected v
  TORCH_ARG(double, weight_decay) = 0;                      ///< decoupled, taken at z
  TORCH_ARG(double, train_interp_coeff) = 0.7;              ///< weight of x in y
  TORCH_ARG(double, eval_interp_coeff) = 0.9967;            ///< what x keeps of itself in a step
  TORCH_ARG(int64_t, warmup_steps) = 0;                     ///< steps of linear warmup of lr

 public:
  std::vector<Option> list() override;
};

/// Generalized primal averaging (arXiv 2512.17131) over AdamW, sharded: z goes as AdamW by gradients at y, and x is a mean
/// of it that forgets, over some 1 / (1 - eval_interp_coeff) steps. In jobs that are not much longer x is still near the
/// start. Both coefficients 0: AdamW. State: z, x, m and v, 16 bytes per parameter over all ranks (32 for float64).
class ZEROSCHED_EXPORT GPAAdamW : public OptimizerOf<GPAAdamW, GPAAdamWOptions> {
 public:
  using OptimizerOf::OptimizerOf;

 private:
  friend OptimizerOf;
  static std::unique_ptr<detail::Algorithm> make_algorithm();
};

}  // namespace zerosched
