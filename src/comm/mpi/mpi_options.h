#pragma once

#include "device/runtime.h"

#include <cstdint>

namespace zerosched::detail {

/// What tests set otherwise than mpi_communicator() does.
struct MpiOptions {
  double timeout_seconds = 600;
  /// The largest count given to one MPI call. MPI counts are int.
  int64_t max_count = int64_t{1} << 30;
  /// The most bytes of partial sums that a chunk of a reduce-scatter takes.
  int64_t chunk_bytes = int64_t{256} << 10;
  /// Of the devices whose tensors are staged; null: device::cuda(). Outlives the communicator.
  device::Runtime* runtime = nullptr;
};

}  // namespace zerosched::detail
