#pragma once

#include <zerosched/communicator.h>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace zerosched::detail {

/// Of the bytes of a tensor of any dtype, layout and device; equal bytes have equal hashes on every machine.
int64_t hash_of(const at::Tensor& tensor);

/// The indices of `values`, as many on all ranks, that are not the same on all. Collective.
std::vector<size_t> differing(
    Communicator& communicator, const std::vector<int64_t>& values, const char* what);

/// Throws on every rank if `lines` differ between ranks, with the first difference. Collective.
void check_same_on_all_ranks(Communicator& communicator, const std::vector<std::string>& lines);

/// Rank 0's values into `tensors` of any dtype and layout. Collective.
void broadcast_values(Communicator& communicator, const std::vector<at::Tensor>& tensors);

/// Throws on every rank if the bytes of `tensors` differ between ranks. Collective.
void check_same_values(Communicator& communicator, const std::vector<at::Tensor>& tensors);

}  // namespace zerosched::detail
