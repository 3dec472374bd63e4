#include "comm/mpi/roll_call.h"

#include "base/backoff.h"
#include "base/leak.h"
#include "base/ranks_text.h"
#include "base/running_time.h"
#include "comm/failure/cause.h"
#include "comm/failure/deadlines.h"
#include "comm/mpi/check.h"
#include "comm/mpi/tags.h"

#include <chrono>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

/// A barrier, and how it is given up. A rank whose time is over tells rank 0 that it is here; so told, or when
/// its own time is over, rank 0 asks all ranks, waits for a grace and tells everyone who has not answered.
/// The barrier may still end until then, and nobody has given up.
///
/// An empty message to rank 0 means "here", one from rank 0 is the question. Any other is the cause for which the
/// sender has given up: the verdict, or that there was none.
class RollCall {
 public:
  RollCall(MPI_Comm parent, double timeout_seconds)
      : parent_(parent), timeout_(timeout_seconds), start_(running_now()) {
    ZEROSCHED_MPI_CALL(MPI_Comm_rank, parent, &rank_);
    ZEROSCHED_MPI_CALL(MPI_Comm_size, parent, &size_);
    here_.assign(static_cast<size_t>(size_), false);
    here_[static_cast<size_t>(rank_)] = true;
  }

  ~RollCall() {
    // MPI may yet read what is in flight.
    if (sending()) keep_for_ever(std::make_shared<std::list<Message>>(std::move(sent_)));
  }

  RollCall(const RollCall&) = delete;
  RollCall& operator=(const RollCall&) = delete;

  void run() {
    MPI_Request barrier = MPI_REQUEST_NULL;
    ZEROSCHED_MPI_CALL(MPI_Ibarrier, parent_, &barrier);
    Backoff backoff(Backoff::Kind::waiting);
    for (;;) {
      int done = 0;
      ZEROSCHED_MPI_CALL(MPI_Test, &barrier, &done, MPI_STATUS_IGNORE);
      // Also when done: who comes when the others have given up may end the barrier all the same.
      rank_ == 0 ? hear(done != 0 || asked_) : follow();
      if (done) return;
      if (rank_ == 0) lead();
      backoff.pause(false);
    }
  }

 private:
  struct Message {
    std::string text;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  bool time_is_over() const { return running_now() - start_ > Seconds(timeout_); }

  void lead() {
    if (!asked_ && (told_ || time_is_over())) {
      for (int peer = 1; peer < size_; ++peer) send(peer, "");
      asked_ = running_now();
    }
    if (!asked_ || running_now() - *asked_ < deadlines::answer(timeout_)) return;
    const Cause cause = verdict();
    for (int peer = 1; peer < size_; ++peer) send(peer, to_bytes(cause));
    const auto start = running_now();
    Backoff backoff(Backoff::Kind::waiting);
    while (sending() && running_now() - start < deadlines::kToldAtStart) backoff.pause(false);
    cause.raise();
  }

  void follow() {
    while (const auto bytes = receive(0)) {
      if (!bytes->empty()) parse_cause(*bytes).raise();
      answer();
    }
    if (!time_is_over()) return;
    answer();
    const Seconds patience = Seconds(timeout_) + deadlines::verdict(timeout_);
    if (running_now() - start_ < patience) return;
    Cause cause;
    cause.text = c10::str("mpi: rank 0 has not called mpi_communicator() after ", timeout_,
        " s, so nobody says which others have not; every rank of the parent communicator must call it");
    cause.missing_ranks = {0};
    send(0, to_bytes(cause));
    cause.raise();
  }

  void answer() {
    if (!std::exchange(answered_, true)) send(0, "");
  }

  Cause verdict() const {
    Cause cause;
    std::vector<int>& missing = cause.missing_ranks;
    for (int rank = 0; rank < size_; ++rank) {
      if (!here_[static_cast<size_t>(rank)]) missing.push_back(rank);
    }
    const std::string after = " after " + c10::str(timeout_) + " s";
    if (missing.empty()) {
      cause.text = "mpi: every rank has called mpi_communicator(), but a barrier among them has not ended" +
                   after + "; some of their hosts do not reach each other, or they need a longer timeout";
    } else {
      cause.text = "mpi: " + ranks_text(missing) + (missing.size() == 1 ? " has" : " have") +
                   " not called mpi_communicator()" + after + " (" +
                   (missing.size() == 1 ? "it is" : "they are") +
                   " stopped, dead or busy before it); every rank of the parent communicator must call it";
    }
    return cause;
  }

  // Listens to all ranks, or to one after the other: there may be many, and receives from any source may be
  // ruled out on the parent.
  void hear(bool all) {
    if (!all && size_ > 1) hear_from(next_peer_ = next_peer_ % (size_ - 1) + 1);
    for (int peer = 1; all && peer < size_; ++peer) hear_from(peer);
  }

  void hear_from(int peer) {
    while (const auto bytes = receive(peer)) {
      if (!bytes->empty()) parse_cause(*bytes).raise();
      here_[static_cast<size_t>(peer)] = told_ = true;
    }
  }

  std::optional<std::string> receive(int peer) const {
    int arrived = 0;
    int bytes = 0;
    MPI_Status status;
    ZEROSCHED_MPI_CALL(MPI_Iprobe, peer, kRollCallTag, parent_, &arrived, &status);
    if (!arrived) return std::nullopt;
    ZEROSCHED_MPI_CALL(MPI_Get_count, &status, MPI_BYTE, &bytes);
    std::string text(static_cast<size_t>(bytes), '\0');
    ZEROSCHED_MPI_CALL(
        MPI_Recv, text.data(), bytes, MPI_BYTE, peer, kRollCallTag, parent_, MPI_STATUS_IGNORE);
    return text;
  }

  void send(int peer, const std::string& text) {
    auto& message = sent_.emplace_back();
    message.text = text;
    ZEROSCHED_MPI_CALL(MPI_Isend, message.text.data(), static_cast<int>(text.size()), MPI_BYTE, peer,
        kRollCallTag, parent_, &message.request);
  }

  bool sending() {
    sent_.remove_if([](Message& message) {
      int done = 0;
      return MPI_Test(&message.request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0;
    });
    return !sent_.empty();
  }

  MPI_Comm parent_;
  double timeout_;  // seconds
  Clock::time_point start_;
  int rank_ = 0, size_ = 1;
  std::list<Message> sent_;
  bool answered_ = false;

  // Rank 0.
  bool told_ = false;
  std::optional<Clock::time_point> asked_;
  int next_peer_ = 0;
  std::vector<bool> here_;
};

}  // namespace

void await_all_ranks(MPI_Comm parent, double timeout_seconds) { RollCall(parent, timeout_seconds).run(); }

}  // namespace zerosched::detail
