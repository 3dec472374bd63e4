#include "comm/nccl/group.h"

#include "base/leak.h"
#include "base/running_time.h"
#include "base/while_running.h"
#include "comm/member.h"
#include "comm/nccl/work.h"

#include <algorithm>
#include <utility>

namespace zerosched::detail {

namespace {

using std::chrono::duration;
using std::chrono::steady_clock;

// Launches come in bursts, and collectives take longer than this.
constexpr auto kReapInterval = std::chrono::milliseconds(1);
// What close() allows where other ranks may not come, or the device may be stuck. An exception that unwinds passes
// here before it gets to whoever tells the other ranks.
constexpr duration<double> kHaste{1};
// Beyond the timeout: an investigation, and the end of NCCL's communicator.
constexpr duration<double> kLongestClose{20};
constexpr auto kLookInterval = std::chrono::milliseconds(10);

}  // namespace

NcclGroup::NcclGroup(std::shared_ptr<Communicator> host, std::shared_ptr<NcclComm> comm, int device,
    uint64_t id, const NcclOptions& options)
    : host_(std::move(host)),
      relay_(dynamic_cast<ControlRelay*>(host_.get())),
      comm_(std::move(comm)),
      device_(device),
      id_(id),
      options_(options),
      memory_(std::make_shared<NcclMemory>(api(), runtime(), device, comm_, options.symmetric_memory)),
      events_(runtime(), device),
      stream_(runtime().create_stream(device)),
      caller_ready_(runtime().create_event(device)) {
  WhileRunning::watch_exit();
}

NcclGroup::~NcclGroup() {
  runtime().destroy_event(caller_ready_);
  runtime().destroy_stream(stream_);
}

std::string NcclGroup::name() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return owner_.empty() ? "nccl" : "nccl: " + owner_;
}

void NcclGroup::set_owner(const std::string& owner) {
  zerosched::detail::set_owner(*host_, owner);
  const std::lock_guard<std::mutex> lock(mutex_);
  owner_ = owner;
}

void NcclGroup::leave(std::string why) {
  ControlMessage message;
  message.kind = ControlMessage::Kind::departure;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!why_left_.empty()) return;
    message.sequence = history_.next();
    if (why.empty()) {
      why = "rank " + std::to_string(rank()) + " has destroyed this communicator after " +
            std::to_string(message.sequence) + " collectives; every rank must call the same ones";
    }
    message.text = why_left_ = why;
  }
  for (int peer = 0; relay_ != nullptr && peer < size(); ++peer) {
    if (peer != rank()) send(peer, message);
  }
  zerosched::detail::leave(*host_, why);
}

bool NcclGroup::has_ended(int64_t sequence) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return sequence < (in_flight_.empty() ? history_.next() : in_flight_.front().header.sequence);
}

ControlMessage::Position NcclGroup::position(int64_t sequence) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return history_.position(sequence);
}

void NcclGroup::send(int peer, const ControlMessage& message) { relay_->relay(peer, message); }

Cause NcclGroup::own_cause(const std::string& what, const Header* collective) const {
  Cause cause;
  cause.rank = rank();
  if (collective != nullptr) cause.collective = describe(*collective);
  cause.text = "nccl: rank " + std::to_string(rank()) + ": " +
               (collective != nullptr ? cause.collective + ": " : std::string()) + what;
  return cause;
}

void NcclGroup::fail(const Cause& cause) {
  zerosched::detail::fail(*host_, cause);
  const std::lock_guard<std::mutex> lock(mutex_);
  look_now_ = true;
  changed_.notify_all();
}

// The stream rules, each applied where it says so.
// 1. The collective comes after all that its caller's stream holds at the launch: whatever wrote the
//    tensors, and whatever still reads what the collective is to overwrite.
// 2. The tensors are held until the event behind the collective has passed: LibTorch would give their
//    memory to the next who asks on the stream that they came from, which knows nothing of NCCL's.
// 3. (NcclWork::wait) The waiting stream comes after the collective.
// 4. (NcclMemory) Memory of NCCL's goes after all streams that it was used in.
std::shared_ptr<NcclWork> NcclGroup::launch(
    const char* name, Header header, std::vector<at::Tensor> tensors, const Call& call) {
  const std::lock_guard<std::mutex> launch_lock(launch_mutex_);
  check();
  header.sequence = -1;  // none yet
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!why_left_.empty())
      Cause{"nccl: " + describe(header) + ": " + why_left_, rank(), describe(header), {rank()}}.raise();
  }
  try {
    const Time now = running_now();
    if (now - last_reap_ >= kReapInterval && reap()) last_reap_ = now;
    const device::Stream caller = runtime().current_stream(device_);
    auto blocks = memory_->blocks_of(tensors);
    memory_->used_in(blocks, caller);
    auto work = std::make_shared<NcclWork>(
        shared_from_this(), static_cast<Collective>(header.kind) == Collective::barrier, std::move(blocks));
    runtime().record(caller_ready_, caller);
    runtime().wait(stream_, caller_ready_);  // rule 1
    {
      // Before the call, which may wait for ranks that ask where this one is.
      const std::lock_guard<std::mutex> lock(mutex_);
      header.group = id_;
      header.sequence = history_.next();
      history_.add(header);
      in_flight_.push_back({header, work, std::move(tensors), now});  // rule 2
    }
    const auto stream = static_cast<cudaStream_t>(stream_.handle);
    if (call)
      comm_->call(
          name, [&](ncclComm_t comm) { return call(comm, stream); }, [this] { check(); });
    work->record(stream_);
    return work;
  } catch (const c10::Error& error) {
    forget(header.sequence);
    // The other ranks are in this collective or will be, without us.
    fail(own_cause(error.what_without_backtrace(), &header));
    check();
    throw;
  }
}

bool NcclGroup::reap() {
  std::deque<InFlight> through;  // tensors are freed outside of the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool any = !in_flight_.empty();
  while (!in_flight_.empty() && in_flight_.front().work->passed()) {
    through.push_back(std::move(in_flight_.front()));
    in_flight_.pop_front();
  }
  return any;
}

bool NcclGroup::in_flight() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !in_flight_.empty();
}

// A collective that was not launched has no event that would pass. Whether NCCL has begun it nobody knows.
void NcclGroup::forget(int64_t sequence) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find_if(in_flight_.begin(), in_flight_.end(),
      [sequence](const InFlight& entry) { return entry.header.sequence == sequence; });
  if (found == in_flight_.end()) return;
  keep_for_ever(std::make_shared<std::vector<at::Tensor>>(std::move(found->tensors)));
  in_flight_.erase(found);
}

bool NcclGroup::close(bool hasty) {
  const Time begin = running_now();
  const auto patience = duration<double>(options_.timeout_seconds) + kLongestClose;
  std::optional<Time> last_call;
  for (;;) {
    const Time now = running_now();
    if (!last_call && (hasty || failed()))
      last_call = now + std::chrono::duration_cast<steady_clock::duration>(kHaste);
    const bool enough = WhileRunning::is_over() || now - begin > patience || (last_call && now > *last_call);
    std::unique_lock<std::mutex> lock(mutex_);
    closing_ = true;
    changed_.notify_all();
    changed_.wait_for(
        lock, enough ? std::chrono::milliseconds(0) : kLookInterval, [this] { return closed_; });
    if (closed_ || enough) return closed_;
  }
}

}  // namespace zerosched::detail
