#include "comm/mpi/operation.h"

#include "base/backoff.h"
#include "base/blocked_time.h"
#include "base/running_time.h"
#include "comm/failure/whereabouts.h"
#include "comm/mpi/check.h"
#include "comm/mpi/group.h"
#include "comm/mpi/progress.h"
#include "comm/mpi/tags.h"

#include <utility>

namespace zerosched::detail {

namespace {

/// Lives while the calling thread is blocked in a collective of the group.
class GroupWaiter {
 public:
  explicit GroupWaiter(MpiGroup& group) : group_(group) { group_.count_waiter(1); }
  ~GroupWaiter() { group_.count_waiter(-1); }
  GroupWaiter(const GroupWaiter&) = delete;
  GroupWaiter& operator=(const GroupWaiter&) = delete;

 private:
  MpiGroup& group_;
};

}  // namespace

Operation::Operation(std::shared_ptr<MpiGroup> group, const Header& header, std::vector<at::Tensor> tensors,
    std::unique_ptr<Staging> staging)
    : group_(std::move(group)), header_(header), tensors_(std::move(tensors)), staging_(std::move(staging)) {}

void Operation::enqueue(uint64_t group, int64_t sequence) {
  header_.group = group;
  header_.sequence = sequence;
  started_ = running_now();
}

void Operation::wait() {
  auto& progress = Progress::instance();
  // Without a progress thread the older collectives end in here too: other ranks may need this one to take
  // part in what its caller has dropped or will look at late.
  const auto through = [&] {
    return usable() && (progress.has_thread() || group_->ended_up_to(header_.sequence));
  };
  if (!through()) {
    if (progress.is_forked()) group_->cause_in_fork().raise();
    if (group_->failed()) group_->cause().raise();
    const BlockedTimer timer;
    const GroupWaiter in_group(*group_);
    const WaitsIn here(header_, group_->owner());
    const Progress::Waiter waiter;
    for (Backoff backoff(Backoff::Kind::waiting);;) {
      const bool moved = progress.drive();
      if (through()) break;
      if (group_->failed()) group_->cause().raise();
      backoff.pause(moved);
    }
  }
  if (staging_ != nullptr) staging_->wait();
}

bool Operation::done() const noexcept {
  if (ended() || group_->failed()) return true;
  // Without a progress thread a caller that polls done() is what moves the collective.
  Progress::instance().drive_if_inline();
  return ended() || group_->failed();
}

void Operation::start() {
  const int size = group_->size();
  for (int distance = 1; distance < size; distance *= 2) rounds_.emplace_back();
  for (size_t k = 0; k < rounds_.size(); ++k) {
    ZEROSCHED_MPI_CALL(MPI_Irecv, &rounds_[k].received, static_cast<int>(sizeof(Header)), MPI_BYTE,
        (group_->rank() + size - (1 << k)) % size, header_tag(header_.sequence), group_->comm(),
        &rounds_[k].receive);
  }
  if (!rounds_.empty()) send_header();
  if (may_start_data()) guarded_data(true);
}

bool Operation::poll() {
  bool moved = poll_headers();
  if (!data_started_) {
    if (may_start_data()) moved = guarded_data(true) || moved;
    if (!data_started_) group_->set_older_has_not_started();
  }
  if (data_started_ && !data_done_) moved = guarded_data(false) || moved;
  if (data_done_ && headers_agree() && headers_sent() && bring_back()) {
    tensors_.clear();
    ended_.store(true, std::memory_order_release);
    moved = true;
  }
  return moved;
}

bool Operation::may_start_data() {
  // MPI wants its collectives started in one order on all ranks, whose headers may arrive in another.
  if (!starts_at_once() && (!headers_agree() || group_->older_has_not_started())) return false;
  return staging_ == nullptr || staging_->arrived_on_host();
}

// The results of a staged collective to the device; whether they are there.
bool Operation::bring_back() {
  if (staging_ == nullptr) return true;
  if (!staging_->sent_back()) staging_->send_back();
  return staging_->through();
}

void Operation::send_header() {
  ZEROSCHED_MPI_CALL(MPI_Isend, &header_, static_cast<int>(sizeof(Header)), MPI_BYTE,
      (group_->rank() + (1 << round_)) % group_->size(), header_tag(header_.sequence), group_->comm(),
      &rounds_[round_].send);
}

bool Operation::poll_headers() {
  bool moved = false;
  while (!headers_agree() && !mismatch_) {
    auto& round = rounds_[round_];
    int arrived = 0;
    ZEROSCHED_MPI_CALL(MPI_Test, &round.receive, &arrived, MPI_STATUS_IGNORE);
    if (!arrived) break;
    moved = true;
    if (!matches(header_, round.received)) {
      mismatch_ = true;
    } else if (++round_; !headers_agree()) {
      send_header();
    }
  }
  return moved;
}

bool Operation::headers_sent() {
  for (auto& round : rounds_) {
    int sent = 0;
    ZEROSCHED_MPI_CALL(MPI_Test, &round.send, &sent, MPI_STATUS_IGNORE);
    if (!sent) return false;
  }
  return true;
}

// Keeps what MPI says about the data until it is known whether the headers explain it better.
bool Operation::guarded_data(bool start) {
  if (!error_.empty()) return false;
  try {
    if (!start) return poll_data();
    data_started_ = true;
    start_data();
    return true;
  } catch (const c10::Error& error) {
    error_ = error.what_without_backtrace();
    error_time_ = running_now();
    return false;
  }
}

}  // namespace zerosched::detail
