#pragma once

#include <mpi.h>

#include <cstdint>

namespace zerosched::detail {

/// The bytes of the messages in which `comm` exchanges tensors, the same on all its ranks. Collective, and blocks.
///
/// Between hosts those that MPI sends at once, without asking the receiver first. Open MPI's TCP then keeps both
/// directions of a connection busy, which it does not with larger ones: there each end waits for the other's word behind
/// the other's data. Measured on two hosts at 1 Gbit/s, both ways at once: 0.12 GB/s each way against 0.06.
int64_t choose_message_bytes(MPI_Comm comm, bool on_one_host);

}  // namespace zerosched::detail
