#pragma once

#include <string>

namespace zerosched::detail {

/// "mpi" or "self": how ranks find each other for what SessionOptions::backend asks for. "auto" and "nccl"
/// are decided from the environment that launchers leave, unless the program `has_mpi_world`: has initialised MPI for
/// several ranks itself. Throws if the backend is unknown, or if several processes were started in a way that MPI cannot
/// connect: each would be a world of its own and train alone, without an error.
std::string choose_transport(const std::string& requested, bool has_mpi_world);

/// How many processes the launcher says it has started, or 0 if it does not say.
int launched_processes();

/// This process's rank as the launcher says it, or 0 if it does not say. For messages while MPI cannot be asked.
int launched_rank();

}  // namespace zerosched::detail
