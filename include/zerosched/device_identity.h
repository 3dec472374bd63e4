#pragma once

#include <zerosched/export.h>

#include <ATen/core/TensorBody.h>

#include <string>

namespace zerosched {

/// Hexadecimal digits that no other GPU has, on any node, and that are the same for all processes that see this one,
/// whatever number they know it by. Empty for the CPU. Local. Throws where there is no such GPU.
ZEROSCHED_EXPORT std::string device_identity(at::Device device);

}  // namespace zerosched
