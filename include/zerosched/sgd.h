#pragma once

#include <zerosched/optimizer_of.h>

#include <torch/arg.h>

namespace zerosched {

/// Options of SGD: names and defaults of torch::optim::SGD.
struct ZEROSCHED_EXPORT SGDOptions : OptionsOf<SGDOptions> {
  SGDOptions(double lr = 1e-3) : lr_(lr) {}  ///< the defaults but for lr
  TORCH_ARG(double, lr) = 1e-3;              ///< The learning rate.
  TORCH_ARG(double, momentum) = 0;           ///< Decay of the momentum buffer.
  TORCH_ARG(double, weight_decay) = 0;       ///< Added to the gradient.
  TORCH_ARG(bool, nesterov) = false;         ///< Nesterov momentum; needs a momentum.

 public:
  std::vector<Option> list() override;

 protected:
  void check_together() const override;
};

/// SGD with momentum, as torch::optim::SGD without dampening, sharded: what Schedule-Free is compared with. x and y are the
/// same. State: x and m, the momentum buffer, 8 bytes per parameter over all ranks (16 for float64).
class ZEROSCHED_EXPORT SGD : public OptimizerOf<SGD, SGDOptions> {
 public:
  using OptimizerOf::OptimizerOf;

 private:
  friend OptimizerOf;
  static std::unique_ptr<detail::Algorithm> make_algorithm();
};

}  // namespace zerosched
