#pragma once

#include "comm/mpi/operation.h"
#include "comm/mpi/types.h"

#include <optional>
#include <vector>

namespace zerosched::detail {

/// All-gather by direct exchange: every rank sends its slice to every other, as Open MPI's non-blocking one
/// does, but under a tag of its own, so that it need not wait until all ranks are known to be in it.
class AllGather final : public Operation {
 public:
  using Operation::Operation;

 private:
  bool starts_at_once() const override { return true; }
  void start_data() override;
  bool poll_data() override;

  std::optional<ByteSpan> slice_;
  std::vector<MPI_Request> requests_;
};

}  // namespace zerosched::detail
