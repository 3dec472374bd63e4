#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace torch::autograd {
struct Node;
}

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
  std::shared_ptr<torch::autograd::Node> accumulator_;
  uintptr_t key_;
};

}  // namespace zerosched::detail
