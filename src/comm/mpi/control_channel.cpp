#include "comm/mpi/control_channel.h"

#include "base/leak.h"
#include "comm/mpi/check.h"
#include "comm/mpi/tags.h"

#include <cstring>
#include <utility>

namespace zerosched::detail {

namespace {

// The fixed part of a message on the wire; text follows.
struct WireMessage {
  uint64_t group;
  int64_t sequence;
  int64_t launched;
  int32_t kind;
  uint8_t patient, relayed, has_last, has_asked;
  Header last, asked;
};
static_assert(std::is_trivially_copyable_v<WireMessage>);

}  // namespace

ControlChannel::~ControlChannel() {
  if (outgoing_.empty() && incoming_.empty()) return;
  outgoing_.splice(outgoing_.end(), incoming_);
  keep_for_ever(std::make_shared<std::list<Transfer>>(std::move(outgoing_)));
}

void ControlChannel::send(int peer, const ControlMessage& message) {
  WireMessage wire;
  std::memset(&wire, 0, sizeof(wire));
  wire.group = group_;
  wire.sequence = message.sequence;
  wire.launched = message.position.launched;
  wire.kind = static_cast<int32_t>(message.kind);
  wire.patient = message.patient;
  wire.relayed = message.relayed;
  wire.has_last = message.position.has_last;
  wire.has_asked = message.position.has_asked;
  wire.last = message.position.last;
  wire.asked = message.position.asked;
  outgoing_.emplace_back();
  auto& transfer = outgoing_.back();
  transfer.bytes.resize(sizeof(wire) + message.text.size());
  std::memcpy(transfer.bytes.data(), &wire, sizeof(wire));
  std::memcpy(transfer.bytes.data() + sizeof(wire), message.text.data(), message.text.size());
  ZEROSCHED_MPI_CALL(MPI_Isend, transfer.bytes.data(), static_cast<int>(transfer.bytes.size()), MPI_BYTE,
      peer, kControlTag, comm_, &transfer.request);
}

std::vector<ControlMessage> ControlChannel::receive() {
  for (;;) {
    int found = 0;
    MPI_Message envelope = MPI_MESSAGE_NULL;
    MPI_Status status;
    ZEROSCHED_MPI_CALL(MPI_Improbe, MPI_ANY_SOURCE, kControlTag, comm_, &found, &envelope, &status);
    if (!found) break;
    int byte_count = 0;
    ZEROSCHED_MPI_CALL(MPI_Get_count, &status, MPI_BYTE, &byte_count);
    incoming_.emplace_back();
    auto& transfer = incoming_.back();
    transfer.source = status.MPI_SOURCE;
    transfer.bytes.resize(static_cast<size_t>(byte_count));
    ZEROSCHED_MPI_CALL(MPI_Imrecv, transfer.bytes.data(), byte_count, MPI_BYTE, &envelope, &transfer.request);
  }
  std::vector<ControlMessage> messages;
  for (auto transfer = incoming_.begin(); transfer != incoming_.end();) {
    int done = 0;
    ZEROSCHED_MPI_CALL(MPI_Test, &transfer->request, &done, MPI_STATUS_IGNORE);
    if (!done) {
      ++transfer;
      continue;
    }
    WireMessage wire;
    if (transfer->bytes.size() >= sizeof(wire)) {
      std::memcpy(&wire, transfer->bytes.data(), sizeof(wire));
      // MPI may reuse the context of a freed communicator: what a late message says there is not for us.
      if (wire.group == group_) {
        ControlMessage message;
        message.kind = static_cast<ControlMessage::Kind>(wire.kind);
        message.sequence = wire.sequence;
        message.patient = wire.patient != 0;
        message.relayed = wire.relayed != 0;
        message.position.launched = wire.launched;
        message.position.has_last = wire.has_last != 0;
        message.position.has_asked = wire.has_asked != 0;
        message.position.last = wire.last;
        message.position.asked = wire.asked;
        message.text.assign(transfer->bytes.data() + sizeof(wire), transfer->bytes.size() - sizeof(wire));
        message.source = transfer->source;
        messages.push_back(std::move(message));
      }
    }
    transfer = incoming_.erase(transfer);
  }
  return messages;
}

bool ControlChannel::sending() {
  for (auto transfer = outgoing_.begin(); transfer != outgoing_.end();) {
    int done = 0;
    ZEROSCHED_MPI_CALL(MPI_Test, &transfer->request, &done, MPI_STATUS_IGNORE);
    transfer = done ? outgoing_.erase(transfer) : std::next(transfer);
  }
  return !outgoing_.empty();
}

}  // namespace zerosched::detail
