#pragma once

#include "comm/failure/header.h"

#include <cstdint>
#include <string>
#include <vector>

namespace zerosched::detail {

/// What the ranks of a communicator tell each other besides data.
struct ControlMessage {
  enum class Kind : int32_t {
    note,       ///< the communicator has given up, `text` has the cause
    query,      ///< asks where the receiver is relative to collective `sequence`
    reply,      ///< answers a query; `text` says where in the library the sender is
    departure,  ///< the sender takes part in no collective from `sequence` on, `text` says why
  };
  /// What a rank has launched.
  struct Position {
    int64_t launched = 0;    ///< how many collectives
    bool has_last = false;   ///< `last` is the newest of them
    bool has_asked = false;  ///< `asked` is the one asked for; false if not launched yet or long ago
    Header last{};
    Header asked{};
  };

  Kind kind = Kind::note;
  int64_t sequence = -1;
  bool patient = false;  ///< query: of a collective that may take as long as all ranks are alive
  bool relayed = false;  ///< for the communicator that is bootstrapped over this one
  Position position;     ///< reply
  std::string text;      ///< reply, departure; note: to_bytes() of the cause
  int source = -1;       ///< set when received
};

/// Implemented by communicators that carry messages between two ranks for one that is bootstrapped over them.
/// Nothing here blocks or throws; a message to a rank that is dead is lost. Any thread.
class ControlRelay {
 public:
  virtual ~ControlRelay() = default;
  /// Whether the communicator may be used by a thread of the library's own beside the caller's.
  virtual bool any_thread_may_call() const = 0;
  virtual void relay(int peer, const ControlMessage& message) = 0;
  /// The messages that other ranks have relayed to this one, in the order of their arrival.
  virtual std::vector<ControlMessage> take_relayed() = 0;
};

}  // namespace zerosched::detail
