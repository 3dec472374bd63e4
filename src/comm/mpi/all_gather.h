#pragma once

#include "comm/mpi/phased_operation.h"

#include <vector>

namespace zerosched::detail {

/// All-gather by direct exchange: every rank sends its slice to every other, as Open MPI's non-blocking one does, with
/// slices of any size. Where ranks share a host, each fetches the slices that it carries (see Hosts) from other hosts,
/// and has the rest from those that do, from their memory if the tensor is in a window.
class AllGather final : public PhasedOperation {
 public:
  /// `stride`: of the window that holds the tensor (LocalRanks::stride_at); 0: none.
  AllGather(std::shared_ptr<MpiGroup> group, const Header& header, std::vector<at::Tensor> tensors,
      std::unique_ptr<Staging> staging, int64_t stride);

 private:
  void start_data() override;
  void gather_from_hosts(const std::vector<int>& carried);
  void gather_on_host(const std::vector<int>& carried);
  std::vector<char*> slices(const std::vector<int>& ranks) const;

  int64_t stride_;
  int64_t slice_bytes_ = 0;
};

}  // namespace zerosched::detail
