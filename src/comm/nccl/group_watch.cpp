// What the watching thread of an NcclGroup does: it never blocks.
#include "base/leak.h"
#include "base/message_of.h"
#include "base/running_time.h"
#include "base/while_running.h"
#include "comm/failure/deadlines.h"
#include "comm/failure/report_end.h"
#include "comm/member.h"
#include "comm/nccl/group.h"
#include "comm/nccl/work.h"

#include <zerosched/exit_codes.h>

#include <optional>
#include <utility>

#include <unistd.h>

namespace zerosched::detail {

namespace {

using std::chrono::duration;
using std::chrono::steady_clock;

constexpr duration<double> kCloseInterval{0.001};

}  // namespace

void NcclGroup::watch() {
  const duration<double> interval(options_.watch_seconds);
  for (bool begun = false, closing = false;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      // Once an abort has begun, nobody waits long for what follows.
      changed_.wait_for(lock, closing && !abort_ ? kCloseInterval : interval,
          [&] { return look_now_ || (closing_ && !closing); });
      look_now_ = false;
      closing = closing_;
    }
    const WhileRunning running;
    const Time now = running_now();
    try {
      if (!std::exchange(begun, true)) runtime().begin_thread(device_);
      step(now);
      if (closing && finish_closing(now)) return;
    } catch (const std::exception& error) {
      fail(own_cause(message_of(error)));
    }
  }
}

void NcclGroup::step(Time now) {
  if (failed()) {
    if (!abort_) begin_abort(now);
    reap_failed();
    enforce_deadline(now);
    return;
  }
  reap();
  memory_->reap();
  if (finalize_ || abort_) return;  // which free the communicator
  listen(now);
  look_for_departed(now);
  if (failed()) return;
  if (const std::string error = comm_->async_error(); !error.empty()) {
    std::optional<Header> oldest;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!in_flight_.empty()) oldest = in_flight_.front().header;
    }
    // Another rank that has left may have aborted what it will not come to, and the rest may be about to leave.
    const bool parting = (has_left() || departures_.count() > 0) && !all_have_left();
    if (parting && !departures_.grace_is_over(now)) return;
    give_up(own_cause(error, oldest ? &*oldest : nullptr), all_have_left());
    return;
  }
  look_into_oldest(now);
  if (all_have_left()) investigation_.end();
  if (investigation_.active()) investigation_.step(*this, now);
}

void NcclGroup::begin_abort(Time now) {
  abort_.emplace(runtime(), device_, [comm = comm_] { comm->abort(); });
  abort_began_ = now;
}

// After a failure: what has ended goes. On a device that is lost nobody can say what has.
void NcclGroup::reap_failed() {
  memory_->reap();
  try {
    reap();
  } catch (const c10::Error&) {
    keep_what_is_left();
  }
}

void NcclGroup::keep_what_is_left() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& left : in_flight_) {
    keep_for_ever(std::make_shared<std::vector<at::Tensor>>(std::move(left.tensors)));
  }
  in_flight_.clear();
}

void NcclGroup::enforce_deadline(Time now) {
  if (now - abort_began_ < duration<double>(options_.abort_timeout_seconds)) return;
  std::string oldest;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (in_flight_.empty()) return;
    oldest = describe(in_flight_.front().header);
  }
  const std::string text = c10::str(host_->failure(), ". ", oldest, " is still on cuda:", device_, " ",
      options_.abort_timeout_seconds,
      " s after NCCL's communicator was aborted: its kernel cannot be aborted (those on symmetric memory "
      "wait for "
      "the other ranks and look at nothing else), ");
  constexpr const char* kRemedy =
      "Start the job again without what keeps the rank from coming; "
      "SessionOptions().symmetric_memory(false), or "
      "NCCL_WIN_ENABLE=0 in the environment, takes kernels that can be aborted, and "
      "SessionOptions().abort_timeout() is "
      "how long a busy GPU has for them.";
  if (!options_.end_process) {
    if (!std::exchange(has_warned_, true)) {
      TORCH_WARN("zerosched: rank ", rank(), ": ", text, "and whoever waits for the GPU waits on. ", kRemedy);
    }
    return;
  }
  report_end(rank(), text + "so this process ends. " + kRemedy);
  _exit(kFailureExitCode);
}

void NcclGroup::listen(Time now) {
  if (relay_ == nullptr) return;
  for (const auto& message : relay_->take_relayed()) {
    if (message.kind == ControlMessage::Kind::query) {
      investigation_.on_query(*this, message, now);
    } else if (message.kind == ControlMessage::Kind::reply) {
      investigation_.on_reply(message);
    } else if (message.kind == ControlMessage::Kind::departure) {
      departures_.add(message.source, message.sequence, message.text);
    }
  }
}

// `quietly`: nobody waits for it, but the device: no failure of the job.
void NcclGroup::give_up(const Cause& cause, bool quietly) {
  auto* member = quietly ? dynamic_cast<Member*>(host_.get()) : nullptr;
  member != nullptr ? member->abandon(cause) : fail(cause);
}

bool NcclGroup::has_left() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !why_left_.empty();
}

// A collective to which a rank will not come. Where this rank has left as well, whoever waits for it hears of that by
// himself, and what is before it ends by itself: an abort would end that too.
void NcclGroup::look_for_departed(Time now) {
  const bool leaves = has_left();
  Cause cause;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const InFlight& entry : in_flight_) {
      const auto* departure = departures_.missing_in(entry.header.sequence);
      if (departure == nullptr && leaves) return;
      if (departure == nullptr) continue;
      cause.rank = departure->rank;
      cause.collective = describe(entry.header);
      cause.missing_ranks = {departure->rank};
      cause.text = "nccl: " + cause.collective + ": " + departure->why;
      break;
    }
  }
  if (cause.text.empty() || (!leaves && !departures_.grace_is_over(now))) return;
  give_up(cause, leaves);
}

// NCCL itself neither notices a rank that does not come nor one that is in another collective: both hang.
void NcclGroup::look_into_oldest(Time now) {
  Header oldest;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (in_flight_.empty()) return;
    if (now - in_flight_.front().launched < duration<double>(options_.timeout_seconds)) return;
    oldest = in_flight_.front().header;
  }
  if (all_have_left()) {
    give_up(own_cause("it has not ended, and this rank has left", &oldest), true);
  } else {
    investigation_.begin(*this, oldest.sequence, false, now);
  }
}

bool NcclGroup::finish_closing(Time now) {
  if (!abort_) {
    if (in_flight() || memory_->reap()) return false;
    if (!finalize_) {
      finalize_.emplace(runtime(), device_, [comm = comm_] { comm->finalize(); });
      finalize_began_ = now;
    }
    if (!finalize_->ended()) {
      if (now - finalize_began_ > deadlines::kFinalizeNccl) begin_abort(now);
      return false;
    }
    try {
      finalize_->check();
    } catch (const std::exception&) {
      begin_abort(now);
      return false;
    }
  } else {
    if (!abort_->ended()) return false;
    reap_failed();
    if (memory_->is_freeing()) return false;
  }
  // An abort waits for NCCL's kernels. What it has ended may be behind other work of the caller's.
  keep_what_is_left();
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  changed_.notify_all();
  return true;
}

}  // namespace zerosched::detail
