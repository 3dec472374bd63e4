#pragma once

#include <zerosched/communicator.h>

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace zerosched::detail {

/// Throws on every rank if `lines` differ between ranks, with the first difference. Collective.
void check_same_on_all_ranks(Communicator& communicator, const std::vector<std::string>& lines);

/// Rank 0's values into `tensors` of any dtype and layout. Collective.
void broadcast_values(Communicator& communicator, const std::vector<at::Tensor>& tensors);

/// Throws on every rank if the bytes of `tensors` differ between ranks. Collective.
void check_same_values(Communicator& communicator, const std::vector<at::Tensor>& tensors);

}  // namespace zerosched::detail
