#pragma once

#include "comm/mpi/header.h"

#include <mpi.h>

#include <cstdint>
#include <list>
#include <string>
#include <vector>

namespace zerosched::detail {

/// What the ranks of a communicator tell each other besides data.
struct ControlMessage {
  enum class Kind : int32_t {
    note,   ///< the communicator has given up, `text` says why
    query,  ///< asks where the receiver is relative to collective `sequence`
    reply,  ///< answers a query
  };
  /// What a rank has launched.
  struct Progress {
    int64_t launched = 0;   ///< how many collectives
    bool has_last = false;  ///< `last` is the newest of them
    bool has_asked = false; ///< `asked` is the one asked for; false if not launched yet or long ago
    Header last{};
    Header asked{};
  };

  Kind kind = Kind::note;
  int64_t sequence = -1;
  bool patient = false;  ///< query: of a collective that may take as long as all ranks are alive
  Progress progress;     ///< reply
  std::string text;      ///< note
  int source = -1;       ///< set when received
};

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

  /// Longer notes are cut here.
  static constexpr size_t kMaxTextBytes = size_t{16} << 10;

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
