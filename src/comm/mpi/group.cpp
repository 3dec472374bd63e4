#include "comm/mpi/group.h"

#include "base/leak.h"
#include "base/message_of.h"
#include "base/running_time.h"
#include "comm/failure/deadlines.h"
#include "comm/failure/whereabouts.h"
#include "comm/mpi/check.h"
#include "comm/mpi/progress.h"
#include "comm/mpi/tags.h"

#include <utility>

namespace zerosched::detail {

namespace {

// Longer messages are cut.
constexpr size_t kMaxTextBytes = size_t{16} << 10;
constexpr auto kControlInterval = std::chrono::milliseconds(1);
// Of a group that has failed or left, and told so. Such groups may stay, and under some mpiruns every look gives up the
// core.
constexpr auto kControlIntervalAfterwards = std::chrono::milliseconds(20);

}  // namespace

MpiGroup::MpiGroup(MPI_Comm comm, uint64_t id, MpiOptions options, Hosts hosts,
    std::shared_ptr<LocalRanks> local_ranks, std::shared_ptr<Failure> failure)
    : comm_(comm),
      id_(id),
      options_(std::move(options)),
      hosts_(std::move(hosts)),
      local_ranks_(std::move(local_ranks)),
      rank_([comm] {
        int rank = 0;
        ZEROSCHED_MPI_CALL(MPI_Comm_rank, comm, &rank);
        return rank;
      }()),
      size_([comm] {
        int size = 1;
        ZEROSCHED_MPI_CALL(MPI_Comm_size, comm, &size);
        return size;
      }()),
      failure_(std::move(failure)),
      control_(comm, id) {
  forget_what_was_given_up();
}

MpiGroup::~MpiGroup() = default;

std::string MpiGroup::name() const {
  const auto who = owner();
  return who == nullptr ? "mpi" : "mpi: " + *who;
}

void MpiGroup::launch(const std::shared_ptr<Operation>& operation) {
  const std::lock_guard<std::mutex> lock(queue_mutex_);
  if (!why_left_.empty()) {
    Header header = operation->header();
    header.sequence = -1;  // none, and none to come
    Cause{"mpi: " + describe(header) + ": " + why_left_, rank_, describe(header), {rank_}}.raise();
  }
  operation->enqueue(id_, next_sequence_++);
  queue_.push_back(operation);
  forget_what_was_given_up();
}

void MpiGroup::set_owner(const std::string& owner) {
  const std::lock_guard<std::mutex> lock(queue_mutex_);
  owner_ = std::make_shared<const std::string>(owner);
}

std::shared_ptr<const std::string> MpiGroup::owner() const {
  const std::lock_guard<std::mutex> lock(queue_mutex_);
  return owner_;
}

void MpiGroup::leave(std::string why) {
  const std::lock_guard<std::mutex> lock(queue_mutex_);
  if (!why_left_.empty()) return;
  if (why.empty()) {
    why = "rank " + std::to_string(rank_) + " has destroyed this communicator after " +
          std::to_string(next_sequence_) + " collectives; every rank must call the same ones";
  }
  why_left_ = std::move(why);
  has_left_.store(true, std::memory_order_release);
}

bool MpiGroup::answers_when_busy() const { return Progress::instance().has_thread(); }

void MpiGroup::fail(const Cause& cause) {
  Cause sent = cause;
  if (sent.text.size() > kMaxTextBytes) sent.text.resize(kMaxTextBytes);
  if (failure_->set(std::move(sent))) must_tell_ = true;
}

Cause MpiGroup::cause_in_fork() const {
  return {"mpi: this process is a child that rank " + std::to_string(rank_) +
          " has forked, which has no part in the rank's job; leave what is collective to the rank itself"};
}

Cause MpiGroup::own_cause(const std::string& what, const Header* collective) const {
  Cause cause;
  cause.rank = rank_;
  if (collective != nullptr) cause.collective = describe(*collective);
  cause.text = "mpi: rank " + std::to_string(rank_) + ": " +
               (collective != nullptr ? cause.collective + ": " : std::string()) + what;
  return cause;
}

void MpiGroup::start_queued() {
  for (;;) {
    std::shared_ptr<Operation> operation;
    {
      const std::lock_guard<std::mutex> lock(queue_mutex_);
      if (queue_.empty()) return;
      // Of two with the same tag the older has ended, so that no sign or message of one is taken for the other's.
      const int64_t sequence = queue_.front()->header().sequence;
      if (!active_.empty() && sequence - active_.front()->header().sequence >= kTagsInTurn) return;
      operation = std::move(queue_.front());
      queue_.pop_front();
    }
    history_.add(operation->header());
    active_.push_back(operation);
    operation->start();
  }
}

MpiGroup::Polled MpiGroup::poll() {
  Polled polled;
  const auto now = running_now();
  try {
    if (!failed()) {
      start_queued();
      polled.moved = poll_operations(now);
      // Not where it has failed meanwhile, before it left: its note says more.
      if (has_left() && !failed()) tell_departure();
    }
    polled.moved = poll_control(now) || polled.moved;
    look_for_departed(now);
    if (all_have_left()) investigation_.end();
    if (investigation_.active() && !failed()) {
      if (investigation_.step(*this, now) == Investigation::Outcome::all_alive) {
        for (const auto& operation : active_) {
          if (operation->patient()) operation->restart_timeout(now);
        }
      }
    }
  } catch (const std::exception& error) {
    fail(own_cause(message_of(error)));
  }
  if (failed()) {
    bury();
    tell_if_due();
  }
  polled.busy = !active_.empty() || sending_ || (investigation_.active() && !failed());
  return polled;
}

bool MpiGroup::poll_operations(Clock::time_point now) {
  bool moved = false;
  receive_turn_ = true;
  older_has_not_started_ = false;
  for (auto it = active_.begin(); it != active_.end();) {
    auto& operation = **it;
    moved = operation.poll() || moved;
    if (operation.ended()) {
      it = active_.erase(it);
      continue;
    }
    look_into(operation, now);
    ++it;
  }
  first_active_.store(
      active_.empty() ? history_.next() : active_.front()->header().sequence, std::memory_order_release);
  return moved;
}

void MpiGroup::look_into(Operation& operation, Clock::time_point now) {
  const bool is_late = now - operation.started() > std::chrono::duration<double>(options_.timeout_seconds);
  if (all_have_left()) {
    // Another rank may have given it up. No failure of the job, as nobody waits.
    const std::string what = is_late ? "it has not ended, and this rank has left" : operation.error();
    if (!what.empty()) fail_quietly(own_cause(what, &operation.header()), Failure::Origin::parted);
  } else if (operation.mismatch()) {
    investigation_.begin(*this, operation.header().sequence, false, now);
  } else if (!operation.error().empty()) {
    if (operation.headers_agree() || now - operation.error_time() > deadlines::kHeaders) {
      fail(own_cause(operation.error(), &operation.header()));
    }
  } else if (is_late) {
    investigation_.begin(*this, operation.header().sequence, operation.patient(), now);
  }
}

bool MpiGroup::poll_control(Clock::time_point now) {
  pass_on_relayed();
  const bool afterwards = failed() ? !must_tell_ && !sending_ : has_told_departure_ && idle();
  if (now - last_control_ < (afterwards ? kControlIntervalAfterwards : kControlInterval)) return false;
  last_control_ = now;
  const auto messages = control_.receive();
  for (const auto& message : messages) {
    if (message.relayed) {
      const std::lock_guard<std::mutex> lock(queue_mutex_);
      relayed_in_.push_back(message);
      continue;
    }
    switch (message.kind) {
      case ControlMessage::Kind::note:
        fail_quietly(parse_cause(message.text), Failure::Origin::elsewhere);
        break;
      case ControlMessage::Kind::query:
        if (failed()) {
          ControlMessage note;
          note.text = to_bytes(cause());
          send(message.source, note);
        } else {
          investigation_.on_query(*this, message, now);
        }
        break;
      case ControlMessage::Kind::reply:
        investigation_.on_reply(message);
        break;
      case ControlMessage::Kind::departure:
        departures_.add(message.source, message.sequence, message.text);
        break;
    }
  }
  sending_ = control_.sending();
  return !messages.empty();
}

void MpiGroup::tell_departure() {
  if (has_told_departure_) return;
  ControlMessage message;
  message.kind = ControlMessage::Kind::departure;
  {
    const std::lock_guard<std::mutex> lock(queue_mutex_);
    message.sequence = next_sequence_;
    message.text = why_left_;
  }
  for (int peer = 0; peer < size_; ++peer) {
    if (peer != rank_) send(peer, message);
  }
  has_told_departure_ = true;
  sending_ = size_ > 1;
}

// A collective to which a rank will not come. Where this rank has left as well, whoever waits for it hears of that by
// himself, and what is before it ends by itself.
void MpiGroup::look_for_departed(Clock::time_point now) {
  if (departures_.count() == 0 || failed()) return;
  for (const auto& operation : active_) {
    const auto* departure = departures_.missing_in(operation->header().sequence);
    if (departure == nullptr) {
      if (has_left()) return;
      continue;
    }
    Cause cause;
    cause.rank = departure->rank;
    cause.collective = describe(operation->header());
    cause.missing_ranks = {departure->rank};
    cause.text = "mpi: " + cause.collective + ": " + departure->why;
    if (!has_left() && waiters_ == 0 && !departures_.grace_is_over(now)) return;
    has_left() ? fail_quietly(std::move(cause), Failure::Origin::parted) : fail(cause);
    return;
  }
}

void MpiGroup::relay(int peer, ControlMessage message) {
  message.relayed = true;
  message.source = peer;
  const std::lock_guard<std::mutex> lock(queue_mutex_);
  relayed_out_.push_back(std::move(message));
}

std::vector<ControlMessage> MpiGroup::take_relayed() {
  const std::lock_guard<std::mutex> lock(queue_mutex_);
  return std::exchange(relayed_in_, {});
}

void MpiGroup::pass_on_relayed() {
  std::deque<ControlMessage> messages;
  {
    const std::lock_guard<std::mutex> lock(queue_mutex_);
    messages.swap(relayed_out_);
  }
  for (const auto& message : messages) send(message.source, message);
  sending_ = sending_ || !messages.empty();
}

// MPI may still read and write the buffers of collectives that did not end: nobody can take them back, as a
// cancelled collective is not something MPI has. So they are never freed.
void MpiGroup::bury() {
  {
    const std::lock_guard<std::mutex> lock(queue_mutex_);
    active_.insert(active_.end(), queue_.begin(), queue_.end());  // copies to the host may be under way
    queue_.clear();
  }
  for (auto& operation : active_) keep_for_ever(std::move(operation));
  active_.clear();
}

void MpiGroup::tell_if_due() {
  if (!must_tell_.exchange(false)) return;
  ControlMessage note;
  note.text = to_bytes(cause());
  try {
    for (int peer = 0; peer < size_; ++peer) {
      if (peer != rank_) send(peer, note);
    }
    sending_ = true;
  } catch (const c10::Error&) {
    // A transport that cannot even send this leaves the other ranks to their own timeouts.
  }
}

bool MpiGroup::idle() {
  const std::lock_guard<std::mutex> lock(queue_mutex_);
  return queue_.empty() && active_.empty() && relayed_out_.empty() && !sending_;
}

void MpiGroup::close() {
  fail_quietly({"mpi: MPI was finalised while this communicator was in use; destroy it before MPI_Finalize"},
      Failure::Origin::here);
  bury();
}

void MpiGroup::free() {
  if (comm_ != MPI_COMM_NULL && !failed()) MPI_Comm_free(&comm_);
}

char* MpiGroup::take_buffer() {
  if (free_buffers_.empty()) {
    buffers_.push_back(std::unique_ptr<char[]>(new char[static_cast<size_t>(options_.message_bytes)]));
    return buffers_.back().get();
  }
  char* buffer = free_buffers_.back();
  free_buffers_.pop_back();
  return buffer;
}

bool MpiGroup::take_receive_turn() { return std::exchange(receive_turn_, false); }

}  // namespace zerosched::detail
