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
/// CPU tensors take part directly, CUDA tensors through pinned host memory: a copy to the host starts when
/// the current stream gets there, MPI has the data once it has arrived, and Work::wait() blocks the host
/// until the copy back is queued and makes the current stream wait for it. Several ranks may share a GPU.
///
/// Where ranks share a host (MPI_COMM_TYPE_SHARED) they exchange gradients and parameters through memory that all of
/// them see, and with other hosts each byte once per host. The order of a sum then depends on how many ranks there are
/// and on which of them share a host: a tree over the ranks of each host, and one over hosts. `flat_collectives`: on the
/// number of ranks alone, as if each had a host to itself; every rank then exchanges with every other by messages.
///
/// If not every rank of `parent` calls this within the timeout, those that did throw a CommunicationError, which names the
/// others; `parent` may then hold messages of theirs and is of no further use. Once all have come, some milliseconds in MPI's
/// own calls follow, which cannot be given up: a rank that is stopped in them holds the others for as long, unless a
/// Session, which has a time limit for it, ends the job.
///
/// With several ranks, an exception that nobody catches ends the job from now on, with exit code 70 and a line on stderr
/// after the other ranks were told, unless the program has a terminate handler of its own.
///
/// Must be destroyed before MPI_Finalize. A zerosched that was built with ZEROSCHED_MPI=OFF has neither this
/// function nor, once installed, this header.
ZEROSCHED_EXPORT std::shared_ptr<Communicator> mpi_communicator(
    MPI_Comm parent, double timeout_seconds = 600, bool flat_collectives = false);

}  // namespace zerosched
