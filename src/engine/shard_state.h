#pragma once

#include "engine/executor.h"
#include "kernels/step_scalars.h"
#include "layout/layout.h"

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace zerosched::detail {

/// A rank's shard of one bucket's state, in the order of Algorithm::state(): flat, shard_numel elements each.
using ShardState = std::array<at::Tensor, kernels::kMaxStateTensors>;

/// By bucket: the element at which its shard begins in the state of all buckets of its state's dtype, one behind the
/// other. A multiple of 128 bytes.
std::vector<int64_t> state_begins(const Layout& layout);

/// Zeros, by bucket, the first `tensors` of each. They are views: buckets of one state dtype lie behind each other at
/// state_begins() in one allocation per tensor, so that a GPU's kernels can go over many of them at once.
std::vector<ShardState> make_state(const Layout& layout, size_t tensors, Executor& executor);

}  // namespace zerosched::detail
