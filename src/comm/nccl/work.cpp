#include "comm/nccl/work.h"

#include "base/backoff.h"
#include "base/blocked_time.h"
#include "comm/nccl/group.h"

#include <utility>

namespace zerosched::detail {

NcclWork::NcclWork(std::shared_ptr<NcclGroup> group, bool host_waits, NcclMemory::Blocks blocks)
    : group_(std::move(group)),
      host_waits_(host_waits),
      blocks_(std::move(blocks)),
      event_(group_->events().take()) {}

NcclWork::~NcclWork() { group_->events().give_back(event_); }

void NcclWork::record(device::Stream stream) {
  group_->runtime().record(event_, stream);
  recorded_.store(true, std::memory_order_release);
}

bool NcclWork::passed() const {
  return recorded_.load(std::memory_order_acquire) && group_->runtime().query(event_);
}

void NcclWork::wait() {
  group_->check();
  if (host_waits_) {
    const BlockedTimer timer;
    for (Backoff backoff(Backoff::Kind::waiting); !passed(); backoff.pause(false)) group_->check();
    group_->check();  // an abort lets the event pass too
  }
  // Stream rule 3: whoever reads the result, or reuses a buffer that took part, comes after the collective.
  auto& runtime = group_->runtime();
  const device::Stream stream = runtime.current_stream(group_->device());
  runtime.wait(stream, event_);
  group_->memory().used_in(blocks_, stream);
}

bool NcclWork::done() const noexcept {
  try {
    return passed() || group_->failed();
  } catch (const std::exception&) {
    return true;  // the device's error; the watching thread finds it too and tells
  }
}

}  // namespace zerosched::detail
