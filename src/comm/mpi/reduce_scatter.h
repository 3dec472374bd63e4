#pragma once

#include "comm/mpi/phased_operation.h"
#include "comm/mpi/scratch_pool.h"

namespace zerosched::detail {

/// Reduce-scatter by direct exchange: every rank sums what the others have of its own slice.
///
/// Open MPI's own (4.1: binomial reduce to one rank, then scatter) moves the whole tensor log2(N) times and is slower
/// than its all-reduce. Here each rank sends and receives (N-1)/N of the tensor once. Where ranks share a host, they sum
/// there first, from each other's memory if the tensor is in a window, and each then exchanges the sums that it carries
/// (see Hosts) with other hosts. Order of a sum: a ReduceTree over the ranks of each host, and one over hosts.
class ReduceScatter final : public PhasedOperation {
 public:
  /// `stride`: of the window that holds tensor 0 (LocalRanks::stride_at); 0: none.
  ReduceScatter(std::shared_ptr<MpiGroup> group, const Header& header, std::vector<at::Tensor> tensors,
      std::unique_ptr<Staging> staging, int64_t stride);

 private:
  // Messages have tags of their own and wait for room at the receiver, so ranks in another collective do no harm. What
  // is read from another's memory must be known to be there.
  bool starts_at_once() const override { return stride_ == 0; }
  void start_data() override;
  void end_data() override { partials_.reset(); }

  void sum_on_host(const std::vector<int>& carried, const std::vector<char*>& sums, bool last);
  void sum_over_hosts(const std::vector<int>& carried, const std::vector<char*>& sums, bool partial);
  char* slice(int rank) const;

  int64_t stride_;
  int64_t slice_bytes_ = 0;
  ScratchPool::Buffer partials_;  // sums over this host, of the slices that this rank carries
};

}  // namespace zerosched::detail
