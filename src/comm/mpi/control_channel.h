#pragma once

#include "comm/failure/control_message.h"

#include <mpi.h>

#include <cstdint>
#include <list>
#include <vector>

namespace zerosched::detail {

/// Point-to-point messages of the library on a communicator of its own. Nothing here blocks: a message to a
/// rank that is dead or stopped just stays in flight. Used under the progress lock.
class ControlChannel {
 public:
  ControlChannel(MPI_Comm comm, uint64_t group) : comm_(comm), group_(group) {}
  /// Messages still in flight outlive the channel: MPI may yet read their buffers.
  ~ControlChannel();

  void send(int peer, const ControlMessage& message);
  /// Whole messages that have arrived.
  std::vector<ControlMessage> receive();
  bool sending();

 private:
  struct Transfer {
    std::vector<char> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
    int source = -1;
  };
  MPI_Comm comm_;
  uint64_t group_;
  std::list<Transfer> outgoing_, incoming_;
};

}  // namespace zerosched::detail
