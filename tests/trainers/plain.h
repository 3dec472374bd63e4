#pragma once

#include "engine/reference.h"

#include <zerosched/adamw_schedulefree.h>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/optim/optimizer.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::testing {

/// Schedule-Free AdamW of one process over whole tensors in float64, as the torch::optim::Optimizer that a trainer
/// had before it had ranks.
class PlainScheduleFree final : public torch::optim::Optimizer {
 public:
  PlainScheduleFree(const NamedParameters& parameters, double lr)
      : Optimizer(tensors_of(parameters), std::make_unique<AdamWScheduleFreeOptions>(lr)),
        parameters_(parameters),
        reference_(parameters, options_of(lr)) {}

  torch::Tensor step(LossClosure closure = nullptr) override {
    TORCH_CHECK(!closure, "PlainScheduleFree takes no closure");
    std::map<std::string, at::Tensor> gradients;
    for (const auto& [name, parameter] : parameters_) gradients[name] = parameter.grad();
    reference_.step(gradients);
    set("y");
    return {};
  }

  /// Parameters := "x", to be evaluated, or "y".
  void set(const std::string& which) {
    const at::NoGradGuard no_grad;
    for (const auto& [name, parameter] : parameters_) parameter.detach().copy_(reference_.get(which, name));
  }

  const Reference& reference() const { return reference_; }

 private:
  static std::vector<at::Tensor> tensors_of(const NamedParameters& parameters) {
    std::vector<at::Tensor> tensors;
    for (const auto& named : parameters) tensors.push_back(named.second);
    return tensors;
  }
  static Reference::Options options_of(double lr) {
    Reference::Options options;
    options.lr = lr;
    return options;
  }

  NamedParameters parameters_;
  Reference reference_;
};

}  // namespace zerosched::testing
