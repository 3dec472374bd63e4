#pragma once

#include "comm/mpi/control_channel.h"

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::detail {

class Group;

/// Finds out who is missing from a collective that does not end, so that every rank gives up with one and the
/// same message.
///
/// Whoever suspects a collective asks all ranks where they are; asked ranks answer and ask as well. After a
/// short grace the lowest rank that answers decides and tells all; if its verdict does not come, each rank
/// decides for itself.
class Investigation {
 public:
  bool active() const { return active_; }
  void begin(Group& group, int64_t sequence, bool patient, std::chrono::steady_clock::time_point now);
  void on_query(Group& group, const ControlMessage& query, std::chrono::steady_clock::time_point now);
  void on_reply(const ControlMessage& reply);

  enum class Outcome { open, all_alive, failed };
  /// `failed`: the group has been failed with the verdict. `all_alive`: nothing is wrong with a patient
  /// collective. Both end the investigation.
  Outcome step(Group& group, std::chrono::steady_clock::time_point now);

 private:
  std::string verdict(const Group& group) const;

  bool active_ = false;
  bool patient_ = false;
  int64_t sequence_ = -1;
  std::chrono::steady_clock::time_point grace_ends_{};
  std::vector<std::optional<ControlMessage::Progress>> known_;  // by rank
};

}  // namespace zerosched::detail
