#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace zerosched::detail {

/// A tensor like `parameter` in shape, dtype and device whose elements cannot be reached: whoever tries gets a
/// c10::Error that names the parameter and says where its gradient is. It has no memory.
at::Tensor make_gradient_guard(const at::Tensor& parameter, const std::string& name);

}  // namespace zerosched::detail
