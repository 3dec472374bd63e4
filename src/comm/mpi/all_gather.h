#pragma once

#include "comm/mpi/operation.h"
#include "comm/mpi/types.h"

#include <optional>
#include <vector>

namespace zerosched::detail {

/// All-gather by direct exchange: every rank sends its slice to every other, as Open MPI's non-blocking one
/// does, with slices of any size. It goes straight into the tensor, so it must be known that all ranks send slices
/// of one size: Open MPI 4.1 writes a message that is fetched from its sender (CMA) beyond a receive too short for it.
class AllGather final : public Operation {
 public:
  using Operation::Operation;

 private:
  void start_data() override;
  bool poll_data() override;

  std::optional<ByteSpan> slice_;
  std::vector<MPI_Request> requests_;
};

}  // namespace zerosched::detail
