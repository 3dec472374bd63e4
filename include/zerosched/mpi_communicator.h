#pragma once

#include <zerosched/communicator.h>

#include <mpi.h>

#include <memory>

namespace zerosched {

/// A communicator over MPI, on a duplicate of `parent`, which stays the caller's. Collective over `parent`.
///
/// MPI must be initialised. With MPI_THREAD_MULTIPLE one background thread per process advances the
/// collectives of all MPI communicators, looks for the error notes of other ranks and gives up collectives
/// that take longer than `timeout_seconds`; it sleeps while nothing is in flight. With less than
/// MPI_THREAD_MULTIPLE there is no such thread: collectives advance, and notes and timeouts are seen, only
/// inside calls into the communicator, and a warning on rank 0 says so.
///
/// Must be destroyed before MPI_Finalize. Throws c10::Error where zerosched was built with ZEROSCHED_MPI=OFF.
ZEROSCHED_EXPORT std::shared_ptr<Communicator> mpi_communicator(
    MPI_Comm parent, double timeout_seconds = 600);

}  // namespace zerosched
