#pragma once

#include "comm/mpi/operation.h"
#include "comm/mpi/reduce_tree.h"

#include <deque>
#include <vector>

namespace zerosched::detail {

/// Reduce-scatter by direct exchange: every rank sends slice p to rank p and sums what arrives for its own
/// slice, chunk by chunk, while the chunk is in cache.
///
/// Open MPI's own (4.1: binomial reduce to one rank, then scatter) moves the whole tensor log2(N) times and
/// is slower than its all-reduce. Here each rank sends and receives (N-1)/N of the tensor once. Memory is a
/// few MB whatever the number of ranks. Of several reduce-scatters in flight the oldest receives first.
class ReduceScatter final : public Operation {
 public:
  using Operation::Operation;

 private:
  // Sums of one chunk, per node of the tree; a node without data has not been summed yet.
  struct Chunk {
    int64_t index = 0;
    std::vector<Addend> nodes;
    bool done = false;
  };
  struct Receive {
    int64_t chunk = 0;
    int peer = 0;
    char* buffer = nullptr;
  };

  // Its messages have tags of their own and receives take any chunk, so ranks in another collective do no harm.
  bool starts_at_once() const override { return true; }
  void start_data() override;
  bool poll_data() override;

  void post_sends();
  void post_receives();
  void arrived(const Receive& receive);
  void add(Chunk& chunk, int left, int right, int parent);
  Chunk& chunk_state(int64_t index);
  int64_t chunk_elements(int64_t index) const;
  char* slice(int rank) const;

  int64_t slice_elements_ = 0, chunk_size_ = 0, chunk_count_ = 0;  // chunk_size_ in elements
  int64_t element_bytes_ = 0;
  int window_ = 0;               // receives in flight
  int64_t receives_posted_ = 0;  // of chunk_count_ * (ranks - 1), by chunk, then by peer
  int64_t chunks_done_ = 0, chunks_retired_ = 0;
  int64_t sends_done_ = 0;
  std::vector<int64_t> sends_posted_;  // per peer, in order of distance
  std::vector<MPI_Request> requests_;  // receives first, then kSendsPerPeer per peer
  std::vector<Receive> receives_;      // of the first window_ requests
  std::vector<int> completed_;
  std::deque<Chunk> chunks_;  // in progress, consecutive from chunks_retired_
};

}  // namespace zerosched::detail
