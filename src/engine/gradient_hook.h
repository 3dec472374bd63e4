#pragma once

#include <torch/csrc/autograd/variable.h>

#include <functional>

namespace zerosched::detail {

/// Calls `on_gradient` each time backward has put a parameter's gradient into .grad, or found that it has
/// none. Registered while the object lives.
class GradientHook {
 public:
  /// `on_gradient` must not throw: autograd would carry the exception to whatever thread runs backward.
  GradientHook(const at::Tensor& parameter, std::function<void()> on_gradient);
  ~GradientHook();
  GradientHook(GradientHook&&) noexcept = default;
  GradientHook& operator=(GradientHook&&) = delete;
  GradientHook(const GradientHook&) = delete;

 private:
  // Keeps the accumulator alive: tensors refer to it weakly, and the hook goes when it goes.
  // LibTorch's versions differ in the kind of pointer.
  decltype(torch::autograd::impl::grad_accumulator(std::declval<const at::Tensor&>())) accumulator_;
  uintptr_t key_;
};

}  // namespace zerosched::detail
