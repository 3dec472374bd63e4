#pragma once

#include "comm/mpi/stage.h"

#include <mpi.h>

#include <cstdint>
#include <vector>

namespace zerosched::detail {

class MpiGroup;

/// What a rank sends to and takes from one other in a MessageGather: whole slices, all of one size.
struct GatherLane {
  int peer;
  std::vector<char*> slices;
};

/// Slices that go as they are, straight into place: so it must be known that all ranks send slices of one size, because
/// Open MPI 4.1 writes a message that is fetched from its sender (CMA) beyond a receive too short for it.
///
/// Messages are of a size that MPI sends without asking the receiver (MpiGroup::message_bytes), which keeps both directions
/// of every connection busy.
class MessageGather final : public Stage {
 public:
  /// `sequence` numbers the collective, of which no other stage exchanges messages with the same peers.
  MessageGather(MpiGroup& group, int64_t slice_bytes, std::vector<GatherLane> sends,
      std::vector<GatherLane> receives, int64_t sequence);

  bool poll() override;
  bool done() const override { return started_ && left_ == 0; }

 private:
  // The messages of a lane in one direction, of which the first are through and some more in flight.
  struct Flow {
    GatherLane lane;
    bool sends;
    int64_t posted = 0, total = 0;
  };

  void start();
  void post(size_t index);

  MpiGroup& group_;
  int64_t slice_bytes_;
  int64_t sequence_;
  bool started_ = false;
  int64_t chunk_bytes_ = 0, chunks_per_slice_ = 0;
  int in_flight_ = 0;  // messages of a flow
  int64_t left_ = 0;   // messages of all flows
  std::vector<Flow> flows_;
  std::vector<MPI_Request> requests_;  // in_flight_ per flow
  std::vector<int> completed_;
};

}  // namespace zerosched::detail
