#pragma once

#include "comm/failure/cause.h"
#include "comm/failure/control_message.h"
#include "comm/failure/departures.h"

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::detail {

/// A communicator as the ranks that look into it see it.
class Investigated {
 public:
  virtual ~Investigated() = default;
  /// The backend, and who uses the communicator: what messages start with.
  virtual std::string name() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual double timeout_seconds() const = 0;
  virtual bool failed() const = 0;
  /// Whether ranks answer while they are busy with something else.
  virtual bool answers_when_busy() const = 0;
  /// The ranks that have left, as far as this one has heard. They answer while they are there.
  virtual const Departures& departures() const = 0;
  /// Whether this one has.
  virtual bool has_left() const = 0;
  bool all_have_left() const { return has_left() && departures().count() == size() - 1; }
  /// Whether collective `sequence` has ended on this rank.
  virtual bool has_ended(int64_t sequence) const = 0;
  /// Where this rank is, relative to collective `sequence`.
  virtual ControlMessage::Position position(int64_t sequence) const = 0;
  virtual void send(int peer, const ControlMessage& message) = 0;
  /// Gives up, and tells the other ranks.
  virtual void fail(const Cause& cause) = 0;
};

/// Finds out who is missing from a collective that does not end, so that every rank gives up with one and the
/// same cause.
///
/// Whoever suspects a collective asks all ranks where they are; asked ranks answer, and ask as well unless they have left.
/// After a short grace the lowest rank that has asked and answered decides and tells all; if its verdict does not come,
/// each that has asked decides for itself. A rank on which the collective ends meanwhile has nothing to decide.
class Investigation {
 public:
  bool active() const { return active_; }
  /// Nobody waits for the collective any more.
  void end() { active_ = false; }
  void begin(Investigated& group, int64_t sequence, bool patient, std::chrono::steady_clock::time_point now);
  /// Answers, and begins as well unless this rank has left.
  void on_query(Investigated& group, const ControlMessage& query, std::chrono::steady_clock::time_point now);
  void on_reply(const ControlMessage& reply);

  enum class Outcome { open, all_alive, ended, failed };
  /// `failed`: the group has been failed with the verdict. `all_alive`: nothing is wrong with a patient
  /// collective. `ended`: nor with this one any more. All three end the investigation.
  Outcome step(Investigated& group, std::chrono::steady_clock::time_point now);

 private:
  /// Where a rank is.
  struct Answer {
    ControlMessage::Position position;
    std::string whereabouts;
  };

  bool has_spoken(const Investigated& group, int rank) const;
  Cause verdict(const Investigated& group) const;

  bool active_ = false;
  bool patient_ = false;
  int64_t sequence_ = -1;
  std::chrono::steady_clock::time_point asked_at_{};
  std::vector<std::optional<Answer>> known_;  // by rank
};

}  // namespace zerosched::detail
