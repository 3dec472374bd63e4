#pragma once

#include "comm/mpi/reduce_tree.h"
#include "comm/mpi/stage.h"

#include <mpi.h>

#include <cstdint>
#include <deque>
#include <vector>

namespace zerosched::detail {

class MpiGroup;

/// What a rank gives to and takes from others in a MessageReduce. Every slice has the same number of elements.
struct ReducePlan {
  at::ScalarType dtype;
  int64_t slice_numel = 0;
  /// Where this rank's addends of the slices that `peer` sums are, in the order of the peer's `sums`.
  struct Send {
    int peer;
    std::vector<const char*> slices;
    bool partial;  ///< they are partial sums, not of dtype
  };
  std::vector<Send> sends;
  /// An addend of every sum: of another rank, which sends it, or of this one.
  struct Source {
    int peer;                         ///< -1: this rank
    std::vector<const char*> slices;  ///< of this rank only, one per sum
    bool partial;
  };
  std::vector<Source> sources;  ///< in the order of the tree's leaves; one of them is this rank's
  std::vector<char*> sums;      ///< where to
  bool last = true;             ///< they are of dtype, rounded once, and not partial sums
};

/// Sums of slices by messages: every rank sends each peer what that is to sum, and sums what arrives for itself, chunk
/// by chunk, while the chunk is in cache.
///
/// Messages are of a size that MPI sends without asking the receiver (MpiGroup::message_bytes), because what it does
/// beyond that keeps one direction of a TCP connection idle. So receivers say how many they have room for: a few MB,
/// whatever the number of ranks, and of several reduce-scatters in flight for the oldest first.
class MessageReduce final : public Stage {
 public:
  /// `sequence` numbers the collective, of which no other stage exchanges messages with the same peers.
  MessageReduce(MpiGroup& group, ReducePlan plan, int64_t sequence);

  bool poll() override;
  bool done() const override {
    return started_ && chunks_done_ == chunk_count_ && sends_done_ == sends_total_ && credits_.empty();
  }

 private:
  // Sums of one chunk, per node of the tree; a node without data has not been summed yet.
  struct Chunk {
    int64_t index = 0;
    std::vector<Addend> nodes;
    bool done = false;
  };
  struct Receive {
    int64_t chunk = 0;
    int source = 0;
    char* buffer = nullptr;
  };
  // What goes to one peer.
  struct Lane {
    int64_t chunk_count = 0;
    int64_t allowed = 0;  ///< chunks that the peer has room for, since the start
    int64_t posted = 0;
    int64_t received_credit = 0;  ///< where MPI puts the peer's next word
  };
  // What a source has been told; MPI may still read it.
  struct Credit {
    int64_t chunks;
    MPI_Request request;
  };

  void start();
  void post_sends();
  int64_t receive_count() const;
  void post_receives();
  void drop_sent_credits();
  void give_credit(size_t source, int64_t chunks);
  void credit_arrived(size_t index);
  void arrived(const Receive& receive);
  void add(Chunk& chunk, int left, int right, int parent);
  Chunk& chunk_state(int64_t index);
  int64_t chunk_numel(int64_t index) const;
  int64_t first_element(int64_t index) const;
  const char* chunk_of(const std::vector<const char*>& slices, int64_t index, bool partial) const;
  int64_t bytes_of(bool partial) const { return partial ? partial_bytes(plan_.dtype) : element_bytes_; }

  MpiGroup& group_;
  ReducePlan plan_;
  int64_t sequence_;
  bool started_ = false;
  ReduceTree tree_;
  int64_t element_bytes_;
  int own_ = 0;                     // of plan_.sources
  std::vector<int> arrival_order_;  // of the other sources: from the next after this rank's own on
  int64_t chunk_size_ = 0;          // in elements
  int64_t chunks_per_slice_ = 0, chunk_count_ = 0;
  int window_ = 0;  // receives in flight
  int sends_per_lane_ = 0;
  int64_t receives_posted_ = 0;  // of chunk_count_ * (sources - 1), by chunk, then in arrival order
  int64_t chunks_done_ = 0, chunks_retired_ = 0;
  int64_t sends_done_ = 0, sends_total_ = 0;
  std::vector<Lane> lanes_;                  // of plan_.sends
  std::vector<int64_t> credited_, granted_;  // per source: chunks it was told of, and has room for
  std::deque<Credit> credits_;
  std::vector<MPI_Request> requests_;  // window_ receives, a credit per lane, sends_per_lane_ per lane
  std::vector<Receive> receives_;      // of the first window_ requests
  std::vector<int> completed_;
  std::deque<Chunk> chunks_;  // in progress, consecutive from chunks_retired_
};

}  // namespace zerosched::detail
