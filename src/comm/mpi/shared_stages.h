#pragma once

#include "comm/mpi/local_ranks.h"
#include "comm/mpi/reduce_tree.h"
#include "comm/mpi/stage.h"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// Sums of slices over the ranks of a host, read from where those have them. It is known that all are in this collective.
class SharedReduce final : public Stage {
 public:
  /// `slices`: where this rank has the addends of what it sums, in a window with `stride`; `sums`: where to.
  /// `last`: sums are of dtype, rounded once, and not partial sums.
  SharedReduce(std::shared_ptr<LocalRanks> ranks, int64_t sequence, int64_t stride, at::ScalarType dtype,
      int64_t slice_numel, std::vector<const char*> slices, std::vector<char*> sums, bool last);

  bool poll() override;
  bool done() const override { return next_ == total_; }

 private:
  void sum_chunk(int64_t index);
  Addend sum(int node, const char* own, int64_t numel, char* out, int depth);

  std::shared_ptr<LocalRanks> ranks_;
  int64_t sequence_, stride_;
  at::ScalarType dtype_;
  int64_t slice_numel_;
  std::vector<const char*> slices_;
  std::vector<char*> sums_;
  bool last_;
  bool has_signed_ = false;
  ReduceTree tree_;
  int64_t chunks_per_slice_, total_, next_ = 0;
  std::vector<std::unique_ptr<char[]>> scratch_;  // by depth in the tree
};

/// The end of a collective in a window: what this rank has there is its own again once all have read it.
class SharedEnd final : public Stage {
 public:
  SharedEnd(std::shared_ptr<LocalRanks> ranks, int64_t sequence)
      : ranks_(std::move(ranks)), sequence_(sequence) {}

  bool poll() override;
  bool done() const override { return done_; }

 private:
  std::shared_ptr<LocalRanks> ranks_;
  int64_t sequence_;
  bool has_signed_ = false, done_ = false;
};

/// Slices that other ranks of a host hold, copied from where those have them.
class SharedGather final : public Stage {
 public:
  struct Source {
    int position;               ///< of the rank on its host
    std::vector<char*> slices;  ///< where this rank has what that one holds
  };
  SharedGather(std::shared_ptr<LocalRanks> ranks, int64_t sequence, int64_t stride, int64_t slice_bytes,
      std::vector<Source> sources);

  bool poll() override;
  bool done() const override { return sources_.empty(); }

 private:
  std::shared_ptr<LocalRanks> ranks_;
  int64_t sequence_, stride_, slice_bytes_;
  bool has_signed_ = false;
  std::vector<Source> sources_;  // that are left
  int64_t copied_ = 0;           // bytes of the last slice of the one being copied
};

}  // namespace zerosched::detail
