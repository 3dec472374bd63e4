#pragma once

#include "comm/nccl/api.h"
#include "comm/nccl/blocking_call.h"
#include "device/runtime.h"

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

namespace zerosched::detail {

/// One ncclComm_t.
///
/// It is blocking: one that is not starts a thread for every collective and has to be polled for its end. So whatever
/// waits for other ranks is done in a BlockingCall; only the first collectives, for which ranks connect, block their
/// caller. NCCL_COMM_BLOCKING=0 in the environment overrules what is asked for: then calls are in progress when they
/// return, and are polled.
///
/// Thread-safe. NCCL wants one thread at a time, so every call is made under a lock, until it is no longer in
/// progress; abort() can come at any time.
class NcclComm : public std::enable_shared_from_this<NcclComm> {
 public:
  NcclComm(const NcclApi& api, device::Runtime& runtime, int device);
  /// Aborts what was not finalised.
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  /// Throws when the caller should no longer wait for a call.
  using GiveUp = std::function<void()>;

  /// Begins to join the other ranks, in a thread of its own.
  void start(int size, int rank, const ncclUniqueId& id);
  /// The same over the ranks of `parent`, which takes no other call meanwhile.
  void start_split(const std::shared_ptr<NcclComm>& parent, int rank);
  /// Whether the thread has ended, now or within `seconds`; throws what was wrong if it has.
  bool started(double seconds = 0) const;
  /// The same, and does not throw.
  bool ended_starting() const { return joining_->ended(); }
  /// Aborts, as soon as it is there, what was started; waits a moment for that.
  void give_up_start() noexcept;

  /// Makes an NCCL call and returns once it is on its stream. Throws with the call's name and NCCL's text.
  void call(const char* name, const std::function<ncclResult_t(ncclComm_t)>& function, const GiveUp& give_up);

  /// What NCCL has found to be wrong since, or empty. For the thread that begins abort() and finalize(), before it
  /// does.
  std::string async_error();

  /// A window on memory from ncclMemAlloc through which other ranks reach it; null if NCCL has none to give.
  /// Collective over the ranks of the communicator.
  void* register_window(void* memory, size_t byte_count, const GiveUp& give_up);
  /// Local. Whether the window is gone: by this call, or because the communicator is, and the window with it.
  bool deregister_window(void* window) noexcept;

  /// Ends collectives in flight on the device, if their kernels look, and frees the communicator. May block for as
  /// long as the device does.
  void abort() noexcept;
  /// Frees the communicator after its last collective has ended: what other ranks still have to fetch from this one
  /// gets out first. May block for as long as they do, until an abort(). Throws if NCCL fails.
  void finalize();

 private:
  void join(const char* name, std::function<ncclResult_t(ncclComm_t*)> function);
  std::unique_lock<std::timed_mutex> lock(const GiveUp& give_up);
  ncclResult_t settle(ncclComm_t comm, ncclResult_t result, const GiveUp& give_up);
  std::string text_of(const char* name, ncclResult_t result);
  /// The communicator, for the caller alone to free.
  ncclComm_t take() noexcept;

  const NcclApi& api_;
  device::Runtime& runtime_;
  const int device_;
  std::optional<BlockingCall> joining_;
  std::atomic<bool> given_up_{false};
  std::timed_mutex mutex_;
  std::atomic<ncclComm_t> comm_{nullptr};
  std::set<void*> windows_;  // under mutex_
};

}  // namespace zerosched::detail
