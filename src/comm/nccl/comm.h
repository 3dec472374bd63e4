#pragma once

#include "comm/nccl/api.h"
#include "device/runtime.h"

#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <string>

namespace zerosched::detail {

/// One ncclComm_t, made so that none of its calls block: those that would say ncclInProgress and are polled.
///
/// Thread-safe. NCCL wants one thread at a time, so every call is made under a lock, for as long as that call
/// and not for as long as it is in progress; abort() can come at any time.
class NcclComm {
 public:
  NcclComm(const NcclApi& api, device::Runtime& runtime, int device);
  /// Aborts what was not closed.
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  /// Throws when the caller should no longer wait for a call in progress.
  using GiveUp = std::function<void()>;

  /// Starts joining the other ranks. Throws what NCCL says at once; await() is for what it says later.
  void start(int size, int rank, const ncclUniqueId& id);
  void await_start(const GiveUp& give_up);

  /// Makes an NCCL call and returns once it is on its stream. Throws with the call's name and NCCL's text.
  void call(const char* name, const std::function<ncclResult_t(ncclComm_t)>& function, const GiveUp& give_up);

  /// What NCCL has found to be wrong since, or empty.
  std::string async_error();

  /// A window on memory from ncclMemAlloc through which other ranks reach it; null if NCCL has none to give.
  /// Collective over the ranks of the communicator.
  void* register_window(void* memory, size_t byte_count, const GiveUp& give_up);
  /// Local. Does nothing if the communicator, and the window with it, is gone.
  void deregister_window(void* window) noexcept;

  /// Ends collectives in flight on the device and frees the communicator. May block for as long as the driver
  /// does, so it is the watching thread's to call.
  void abort() noexcept;
  /// Frees the communicator after its last collective has ended: finalises, so that what other ranks still
  /// have to fetch from this one gets out; if that takes longer than `seconds`, aborts.
  void close(double seconds) noexcept;

 private:
  void await(const char* name, ncclResult_t result, const GiveUp& give_up);
  ncclResult_t poll();
  std::string text_of(const char* name, ncclResult_t result);
  /// The communicator, for the caller alone to free.
  ncclComm_t take() noexcept;

  const NcclApi& api_;
  device::Runtime& runtime_;
  int device_;
  std::timed_mutex mutex_;
  std::atomic<ncclComm_t> comm_{nullptr};
  std::set<void*> windows_;  // under mutex_
};

}  // namespace zerosched::detail
