#include "comm/failure/investigation.h"

#include "base/ranks_text.h"
#include "comm/failure/deadlines.h"
#include "comm/failure/whereabouts.h"

#include <sstream>

namespace zerosched::detail {

using std::chrono::steady_clock;

void Investigation::begin(Investigated& group, int64_t sequence, bool patient, steady_clock::time_point now) {
  if (active_ || group.failed()) return;
  active_ = true;
  sequence_ = sequence;
  patient_ = patient;
  asked_at_ = now;
  known_.assign(static_cast<size_t>(group.size()), std::nullopt);
  known_[static_cast<size_t>(group.rank())] = Answer{group.position(sequence), whereabouts()};
  ControlMessage query;
  query.kind = ControlMessage::Kind::query;
  query.sequence = sequence;
  query.patient = patient;
  for (int peer = 0; peer < group.size(); ++peer) {
    if (peer != group.rank()) group.send(peer, query);
  }
}

void Investigation::on_query(Investigated& group, const ControlMessage& query, steady_clock::time_point now) {
  ControlMessage reply;
  reply.kind = ControlMessage::Kind::reply;
  reply.sequence = query.sequence;
  reply.position = group.position(query.sequence);
  reply.text = whereabouts();
  group.send(query.source, reply);
  if (!group.has_left()) begin(group, query.sequence, query.patient, now);
}

void Investigation::on_reply(const ControlMessage& reply) {
  if (!active_ || reply.sequence != sequence_) return;
  known_[static_cast<size_t>(reply.source)] = Answer{reply.position, reply.text};
}

bool Investigation::has_spoken(const Investigated& group, int rank) const {
  return known_[static_cast<size_t>(rank)].has_value() || group.departures().of(rank, sequence_) != nullptr;
}

Investigation::Outcome Investigation::step(Investigated& group, steady_clock::time_point now) {
  if (group.has_ended(sequence_)) {
    active_ = false;
    return Outcome::ended;
  }
  bool all_answered = true;
  for (int rank = 0; rank < group.size(); ++rank) all_answered = all_answered && has_spoken(group, rank);
  const deadlines::Seconds waited = now - asked_at_;
  if (!all_answered && waited < deadlines::answer(group.timeout_seconds())) return Outcome::open;
  if (all_answered && patient_) {
    active_ = false;
    return Outcome::all_alive;
  }
  int first = 0;
  while (
      first < group.rank() && (!known_[static_cast<size_t>(first)] || group.departures().has_left(first))) {
    ++first;
  }
  const bool mine_to_decide = first == group.rank();
  if (!mine_to_decide && waited < deadlines::verdict(group.timeout_seconds())) return Outcome::open;
  active_ = false;
  group.fail(verdict(group));
  return Outcome::failed;
}

Cause Investigation::verdict(const Investigated& group) const {
  Cause cause;
  const Header* collective = nullptr;
  int collective_rank = -1;
  std::vector<int> silent;
  std::ostringstream missing;
  bool waits_elsewhere = false, has_left = false;
  for (int rank = 0; rank < group.size(); ++rank) {
    if (const auto* departure = group.departures().of(rank, sequence_)) {
      cause.missing_ranks.push_back(rank);
      missing << "; " << departure->why;
      has_left = true;
      continue;
    }
    const auto& answer = known_[static_cast<size_t>(rank)];
    if (!answer && group.departures().has_left(rank)) {
      missing << "; rank " << rank << " has left and does not answer";
      has_left = true;
      continue;
    }
    if (!answer) {
      silent.push_back(rank);
      cause.missing_ranks.push_back(rank);
      continue;
    }
    const ControlMessage::Position& position = answer->position;
    if (position.has_asked && collective == nullptr) {
      collective = &position.asked;
      collective_rank = rank;
    } else if (position.has_asked && !matches(*collective, position.asked)) {
      // Headers that read alike differ in what only the long form shows.
      const bool alike = describe(*collective) == describe(position.asked);
      const auto text = alike ? describe_in_full : describe;
      std::ostringstream message;
      message << group.name() << ": rank " << collective_rank << " is in " << text(*collective) << ", rank "
              << rank << " in " << text(position.asked)
              << "; every rank must call the same collectives in the same order";
      cause.text = message.str();
      cause.collective = describe(*collective);
      return cause;
    }
    if (position.launched <= sequence_) {
      cause.missing_ranks.push_back(rank);
      missing << "; rank " << rank << " has not arrived";
      if (position.has_last) {
        missing << " (its last collective was " << describe(position.last) << ")";
      } else {
        missing << " (it has called no collective yet)";
      }
      missing << ", but answers: it "
              << (answer->whereabouts.empty() ? "is busy outside of the library" : answer->whereabouts);
      for (const char* elsewhere : {"waits in", "gave up"})
        waits_elsewhere = waits_elsewhere || answer->whereabouts.find(elsewhere) != std::string::npos;
    }
  }
  cause.collective =
      collective != nullptr ? describe(*collective) : "collective #" + std::to_string(sequence_);
  std::ostringstream message;
  message << group.name() << ": gave up " << cause.collective << " after " << group.timeout_seconds() << " s";
  if (!silent.empty()) {
    message << "; " << ranks_text(silent) << (silent.size() == 1 ? " does" : " do")
            << " not respond (stopped, dead or cut off";
    if (!group.answers_when_busy()) message << "; or busy, as nobody answers then below MPI_THREAD_MULTIPLE";
    message << ")";
  }
  message << missing.str();
  if (waits_elsewhere) {
    message << ". Every rank must step its optimizers, and call what else is collective, in the same order";
  } else if (!missing.str().empty() && !has_left) {
    message << ". If that may take so long, set a longer SessionOptions::timeout";
  } else if (silent.empty() && !has_left) {
    message << "; every rank is in it, so it needs a longer timeout or the network does not deliver";
  }
  cause.text = message.str();
  return cause;
}

}  // namespace zerosched::detail
