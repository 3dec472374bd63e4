#pragma once

#include <mpi.h>

#include <sched.h>

#include <string>
#include <vector>

namespace zerosched::detail {

/// Where the threads of a rank may run.
struct CoreUse {
  cpu_set_t cpus;  ///< those that the rank is bound to, or all of its host's
  int threads;     ///< of parallel loops
};

/// What is wrong with how the ranks of a host share its cores, and the remedy; empty if each thread can have one.
/// `host_cpus`: how many CPUs the host has.
std::string crowding_text(const std::vector<CoreUse>& ranks, int host_cpus);

/// One warning in all, by the first rank of the first host that is crowded. Threads that take turns on a core make a step
/// many times as long, without another sign. Collective over `world`.
void warn_if_crowded(MPI_Comm world);

}  // namespace zerosched::detail
