#pragma once

#include "device/runtime.h"

#include <cstdint>
#include <vector>

namespace zerosched::detail {

/// What mpi_communicator() takes, and what only tests set.
struct MpiOptions {
  double timeout_seconds = 600;
  /// Sums in the order of ranks, whatever hosts they are on, and every rank exchanges with every other.
  bool flat_collectives = false;
  /// The largest count given to one of MPI's own collectives. MPI counts are int.
  int64_t max_count = int64_t{1} << 30;
  /// Of a message of a reduce-scatter or an all-gather; 0: what MPI sends best.
  int64_t message_bytes = 0;
  /// Ranks with equal entries share a host; empty: as MPI says.
  std::vector<int> host_of_rank;
  /// False: as where a container forbids it.
  bool shares_memory = true;
  /// Of the devices whose tensors are staged; null: device::cuda(). Outlives the communicator.
  device::Runtime* runtime = nullptr;
};

}  // namespace zerosched::detail
