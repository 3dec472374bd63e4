#pragma once

#include <string>
#include <vector>

namespace zerosched::testing {

/// Over MPI_COMM_WORLD and without the library under test, so that a failed communicator cannot disturb it.
/// A world of one where MPI is not initialised or not built.
int world_rank();
int world_size();

/// `text` of every rank, by rank, on every rank. Collective.
std::vector<std::string> gather_texts(const std::string& text);

/// Whether every rank says yes. Collective.
bool on_all_ranks(bool yes);

/// Returns once every rank has called. Collective.
void world_barrier();

/// Whether any thread may call MPI at any time.
bool threads_may_call_mpi();

}  // namespace zerosched::testing
