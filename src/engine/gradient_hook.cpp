#include "engine/gradient_hook.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

namespace zerosched::detail {
namespace {

struct PostHook final : torch::autograd::FunctionPostHook {
  explicit PostHook(std::function<void()> callback) : callback(std::move(callback)) {}

  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outputs, const torch::autograd::variable_list&) override {
    callback();
    return outputs;
  }

  std::function<void()> callback;
};

}  // namespace

GradientHook::GradientHook(const at::Tensor& parameter, std::function<void()> on_gradient)
    : accumulator_(torch::autograd::impl::grad_accumulator(parameter)),
      key_(accumulator_->add_post_hook(std::make_unique<PostHook>(std::move(on_gradient)))) {}

GradientHook::~GradientHook() {
  if (accumulator_) accumulator_->del_post_hook(key_);
}

}  // namespace zerosched::detail
