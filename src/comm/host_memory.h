#pragma once

#include <ATen/core/Tensor.h>

namespace zerosched::detail {

/// An uninitialised 1-D CPU tensor. Large ones start on 2 MiB and ask for huge pages, which makes both page
/// faults and copies between processes (the kernel pins pages one by one) cheaper.
at::Tensor empty_host_tensor(int64_t numel, at::ScalarType dtype);

}  // namespace zerosched::detail
