#include "comm/nccl/group.h"

#include "comm/keep.h"
#include "comm/message_of.h"
#include "comm/nccl/work.h"

#include <utility>

namespace zerosched::detail {

namespace {

using std::chrono::steady_clock;

constexpr auto kCloseInterval = std::chrono::milliseconds(1);
// For ranks whose last collective is not through when ours is.
constexpr double kSecondsToFinalize = 5;

}  // namespace

NcclGroup::NcclGroup(std::shared_ptr<Communicator> host, std::shared_ptr<NcclComm> comm, int device,
    uint64_t id, const NcclOptions& options)
    : host_(std::move(host)),
      relay_(dynamic_cast<ControlRelay*>(host_.get())),
      comm_(std::move(comm)),
      device_(device),
      id_(id),
      options_(options),
      memory_(std::make_shared<NcclMemory>(api(), runtime(), device, comm_)),
      stream_(runtime().create_stream(device)),
      caller_ready_(runtime().create_event(device)) {}

NcclGroup::~NcclGroup() {
  runtime().destroy_event(caller_ready_);
  runtime().destroy_stream(stream_);
}

ControlMessage::Progress NcclGroup::progress(int64_t sequence) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return history_.progress(sequence);
}

void NcclGroup::send(int peer, const ControlMessage& message) { relay_->relay(peer, message); }

void NcclGroup::fail(const std::string& message) {
  host_->abort(message);
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
std::shared_ptr<NcclWork> NcclGroup::launch(
    const char* name, Header header, std::vector<at::Tensor> tensors, const Call& call) {
  const std::lock_guard<std::mutex> launch_lock(launch_mutex_);
  check();
  header.sequence = -1;  // none yet
  try {
    reap();
    auto work = std::make_shared<NcclWork>(
        shared_from_this(), static_cast<Collective>(header.kind) == Collective::barrier);
    runtime().record(caller_ready_, runtime().current_stream(device_));
    runtime().wait(stream_, caller_ready_);  // rule 1
    {
      // Before the call, which may wait for ranks that ask where this one is.
      const std::lock_guard<std::mutex> lock(mutex_);
      header.group = id_;
      header.sequence = history_.next();
      history_.add(header);
      in_flight_.push_back({header, work, std::move(tensors), steady_clock::now()});  // rule 2
    }
    const auto stream = static_cast<cudaStream_t>(stream_.handle);
    if (call)
      comm_->call(
          name, [&](ncclComm_t comm) { return call(comm, stream); }, [this] { check(); });
    work->record(stream_);
    return work;
  } catch (const c10::Error& error) {
    // The other ranks are in this collective or will be, without us.
    fail("nccl: rank " + std::to_string(rank()) + ": " + describe(header) + ": " +
         error.what_without_backtrace());
    check();
    throw;
  }
}

void NcclGroup::reap() {
  std::deque<InFlight> through;  // tensors are freed outside of the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  while (!in_flight_.empty() && in_flight_.front().work->passed()) {
    through.push_back(std::move(in_flight_.front()));
    in_flight_.pop_front();
  }
}

void NcclGroup::watch() {
  const auto interval = std::chrono::duration<double>(options_.watch_seconds);
  for (bool closing = false;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto due = [this] { return look_now_; };
      closing ? changed_.wait_for(lock, kCloseInterval, due)
              : changed_.wait_for(lock, interval, [&] { return due() || closing_; });
      look_now_ = false;
      closing = closing_;
    }
    try {
      step();
    } catch (const std::exception& error) {
      fail("nccl: rank " + std::to_string(rank()) + ": " + message_of(error));
    }
    if (closing && finish_closing()) return;
  }
}

void NcclGroup::step() {
  if (failed() && !aborted_) {
    comm_->abort();
    aborted_ = true;
  }
  reap();
  memory_->reap();
  if (failed()) return;
  if (const std::string error = comm_->async_error(); !error.empty()) {
    std::string where;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!in_flight_.empty()) where = describe(in_flight_.front().header) + ": ";
    }
    fail("nccl: rank " + std::to_string(rank()) + ": " + where + error);
    return;
  }
  const auto now = steady_clock::now();
  listen(now);
  look_into_oldest(now);
  if (investigation_.active()) investigation_.step(*this, now);
}

void NcclGroup::listen(steady_clock::time_point now) {
  if (relay_ == nullptr) return;
  for (const auto& message : relay_->take_relayed()) {
    if (message.kind == ControlMessage::Kind::query) {
      investigation_.on_query(*this, message, now);
    } else if (message.kind == ControlMessage::Kind::reply) {
      investigation_.on_reply(message);
    }
  }
}

// NCCL itself neither notices a rank that does not come nor one that is in another collective: both hang.
void NcclGroup::look_into_oldest(steady_clock::time_point now) {
  int64_t sequence = -1;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (in_flight_.empty()) return;
    const auto& oldest = in_flight_.front();
    if (now - oldest.launched < std::chrono::duration<double>(options_.timeout_seconds)) return;
    sequence = oldest.header.sequence;
  }
  investigation_.begin(*this, sequence, false, now);
}

bool NcclGroup::finish_closing() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!aborted_) {
    if (!in_flight_.empty()) return false;
    lock.unlock();
    if (memory_->reap()) return false;
    comm_->close(kSecondsToFinalize);
    lock.lock();
  }
  // After an abort kernels end, unless the device is lost; then nobody can say when memory is free again.
  for (auto& left : in_flight_) {
    if (!left.tensors.empty())
      keep_for_ever(std::make_shared<std::vector<at::Tensor>>(std::move(left.tensors)));
  }
  in_flight_.clear();
  closed_ = true;
  changed_.notify_all();
  return true;
}

bool NcclGroup::close(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  closing_ = true;
  changed_.notify_all();
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return closed_; });
}

}  // namespace zerosched::detail
