#include "session/crowding.h"

#include "comm/mpi/check.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cstring>

#include <unistd.h>

namespace zerosched::detail {

namespace {

CoreUse own_use() {
  CoreUse use;
  std::memset(&use, 0, sizeof(use));
  // On a host with more CPUs than a cpu_set_t holds this fails, and nothing is crowded.
  if (sched_getaffinity(0, sizeof(use.cpus), &use.cpus) != 0) CPU_ZERO(&use.cpus);
  use.threads = at::get_num_threads();
  return use;
}

std::string counted(int count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

}  // namespace

std::string crowding_text(const std::vector<CoreUse>& ranks, int host_cpus) {
  for (const CoreUse& first : ranks) {
    const int cpus = CPU_COUNT(&first.cpus);
    int sharing = 0;
    int threads = 0;
    for (const CoreUse& rank : ranks) {
      if (!CPU_EQUAL(&rank.cpus, &first.cpus)) continue;
      ++sharing;
      threads += rank.threads;
    }
    if (cpus == 0 || threads <= cpus) continue;
    std::string text = counted(sharing, "rank") + " with " + counted(threads, "thread") + " in all share " +
                       counted(cpus, "core") + " of " + std::to_string(host_cpus) + ", so they take turns. ";
    if (cpus < host_cpus) {
      return text + "They are bound to " + (cpus == 1 ? "it" : "these") +
             ": start with launch/run, or with mpirun --bind-to none, or give each rank cores of its own "
             "(Open MPI: --map-by "
             "slot:PE=T --bind-to core; Slurm: --cpus-per-task=T) and as many threads (OMP_NUM_THREADS=T)";
    }
    const int each = cpus / sharing;
    if (each == 0) return text + "Start no more ranks on a host than it has cores";
    return text + "Set OMP_NUM_THREADS=" + std::to_string(each) + ", or start with launch/run, which does";
  }
  return {};
}

void warn_if_crowded(MPI_Comm world) {
  MPI_Comm node = MPI_COMM_NULL;
  ZEROSCHED_MPI_CALL(MPI_Comm_split_type, world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  int rank_on_node = 0;
  int ranks_on_node = 1;
  int rank = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_rank, node, &rank_on_node);
  ZEROSCHED_MPI_CALL(MPI_Comm_size, node, &ranks_on_node);
  ZEROSCHED_MPI_CALL(MPI_Comm_rank, world, &rank);
  const CoreUse own = own_use();
  std::vector<CoreUse> all(static_cast<size_t>(ranks_on_node));
  ZEROSCHED_MPI_CALL(MPI_Gather, &own, static_cast<int>(sizeof(own)), MPI_BYTE, all.data(),
      static_cast<int>(sizeof(own)), MPI_BYTE, 0, node);
  ZEROSCHED_MPI_CALL(MPI_Comm_free, &node);
  std::string text;
  if (rank_on_node == 0) text = crowding_text(all, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  int size = 1;
  ZEROSCHED_MPI_CALL(MPI_Comm_size, world, &size);
  const int crowded = text.empty() ? size : rank;
  int first = size;
  ZEROSCHED_MPI_CALL(MPI_Allreduce, &crowded, &first, 1, MPI_INT, MPI_MIN, world);
  if (first != rank) return;
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  TORCH_WARN("zerosched: on host ", host, " ", text, ".");
}

}  // namespace zerosched::detail
