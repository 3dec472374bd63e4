#pragma once

#include <mpi.h>

namespace zerosched::detail {

/// Returns once every rank of `parent` has called this. For MPI's own ways to make a communicator, which cannot
/// be given up and so are called only when all ranks are here.
///
/// If that takes longer than `timeout_seconds`, all ranks that are here throw a CommunicationError, with one message that
/// names the ranks which are not; it is rank 0 that finds out, and if it is rank 0 that is missing the message
/// says so much and no more. That takes at most 3.5 s in addition. A rank that comes later throws as well.
void await_all_ranks(MPI_Comm parent, double timeout_seconds);

}  // namespace zerosched::detail
