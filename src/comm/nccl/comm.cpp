#include "comm/nccl/comm.h"

#include "base/backoff.h"
#include "base/check.h"
#include "base/leak.h"
#include "comm/failure/deadlines.h"

#include <c10/util/Exception.h>

#include <chrono>
#include <utility>

namespace zerosched::detail {

namespace {

constexpr auto kLookInterval = std::chrono::milliseconds(20);

constexpr int kSymmetricWindow = 0x01;  // NCCL_WIN_COLL_SYMMETRIC

void never_give_up() {}

}  // namespace

NcclComm::NcclComm(const NcclApi& api, device::Runtime& runtime, int device)
    : api_(api), runtime_(runtime), device_(device) {}

NcclComm::~NcclComm() { abort(); }

void NcclComm::start(int size, int rank, const ncclUniqueId& id) {
  join("ncclCommInitRankConfig", [this, size, rank, id](ncclComm_t* comm) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    const ncclResult_t result = api_.comm_init_rank_config(comm, size, id, rank, &config);
    return result == ncclInProgress
               ? settle(*comm, result, [this] { ZEROSCHED_CHECK(!given_up_, "given up"); })
               : result;
  });
}

// The parent's configuration, and so its own resources. With splitShare a family has one flag by which kernels are
// aborted (init.cc of NCCL 2.28): what is in flight on the parent would end with a duplicate, half done and without
// an error.
void NcclComm::start_split(const std::shared_ptr<NcclComm>& parent, int rank) {
  join("ncclCommSplit", [this, parent, rank](ncclComm_t* comm) {
    const auto lock = parent->lock(never_give_up);
    const ncclComm_t whole = parent->comm_;
    if (whole == nullptr) return ncclInvalidUsage;
    const ncclResult_t result = api_.comm_split(whole, 0, rank, comm, nullptr);
    return parent->settle(whole, result, [this] { ZEROSCHED_CHECK(!given_up_, "given up"); });
  });
}

// Where `comm` is written is this thread's alone, which stays in the call until NCCL has done with it.
void NcclComm::join(const char* name, std::function<ncclResult_t(ncclComm_t*)> function) {
  joining_.emplace(runtime_, device_, [self = shared_from_this(), name, function = std::move(function)] {
    ncclComm_t comm = nullptr;
    std::string error;
    try {
      const ncclResult_t result = function(&comm);
      if (result != ncclSuccess) error = self->text_of(name, result);
    } catch (const c10::Error& given_up) {
      error = given_up.what_without_backtrace();
    }
    {
      const std::lock_guard<std::timed_mutex> lock(self->mutex_);
      if (error.empty() && !self->given_up_) {
        self->comm_ = comm;
        return;
      }
    }
    if (comm != nullptr) self->api_.comm_abort(comm);
    ZEROSCHED_CHECK(false, error);
  });
}

bool NcclComm::started(double seconds) const {
  if (!joining_->ended(seconds)) return false;
  joining_->check();
  return true;
}

void NcclComm::give_up_start() noexcept {
  given_up_ = true;
  try {
    BlockingCall(runtime_, device_, [self = shared_from_this()] {
      self->abort();
    }).ended(deadlines::kAbortOfNccl.count());
  } catch (const std::exception&) {
    // No thread to be had: the destructor aborts.
  }
}

std::unique_lock<std::timed_mutex> NcclComm::lock(const GiveUp& give_up) {
  std::unique_lock<std::timed_mutex> lock(mutex_, std::defer_lock);
  while (!lock.try_lock_for(kLookInterval)) give_up();
  return lock;
}

void NcclComm::call(
    const char* name, const std::function<ncclResult_t(ncclComm_t)>& function, const GiveUp& give_up) {
  ncclResult_t result = ncclInvalidUsage;
  {
    const auto locked = lock(give_up);
    if (const ncclComm_t comm = comm_; comm != nullptr) {
      const device::DeviceScope scope(runtime_, device_);
      result = settle(comm, function(comm), give_up);
    }
  }
  if (result == ncclSuccess) return;
  give_up();  // a communicator that was aborted meanwhile explains the error
  ZEROSCHED_CHECK(false, text_of(name, result));
}

// An abort waits longer for the lock, which the caller holds, than passes here between two calls of `give_up`.
ncclResult_t NcclComm::settle(ncclComm_t comm, ncclResult_t result, const GiveUp& give_up) {
  for (Backoff backoff(Backoff::Kind::waiting); result == ncclInProgress;) {
    backoff.pause(false);
    give_up();
    ncclResult_t state = ncclSuccess;
    result = api_.comm_get_async_error(comm, &state);
    if (result == ncclSuccess) result = state;
  }
  return result;
}

std::string NcclComm::async_error() {
  const ncclComm_t comm = comm_;
  if (comm == nullptr) return {};
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = api_.comm_get_async_error(comm, &state);
  if (result != ncclSuccess) state = result;
  if (state == ncclSuccess || state == ncclInProgress) return {};
  return text_of("an asynchronous operation", state);
}

std::string NcclComm::text_of(const char* name, ncclResult_t result) {
  std::string text = std::string(name) + " failed: " + api_.get_error_string(result);
  const char* detail =
      api_.get_last_error(nullptr);  // of the process: NCCL ignores which communicator it was
  if (detail != nullptr && *detail != '\0') text += std::string(" (") + detail + ")";
  return text + "; NCCL_DEBUG=INFO in the environment tells more";
}

void* NcclComm::register_window(void* memory, size_t byte_count, const GiveUp& give_up) {
  const auto window = std::make_shared<void*>(nullptr);
  try {
    call(
        "ncclCommWindowRegister",
        [&](ncclComm_t comm) {
          return api_.comm_window_register(comm, memory, byte_count, window.get(), kSymmetricWindow);
        },
        give_up);
  } catch (...) {
    keep_for_ever(window);  // a call in progress that was given up may still write it
    throw;
  }
  const auto locked = lock(give_up);
  if (*window != nullptr) windows_.insert(*window);
  return *window;
}

bool NcclComm::deregister_window(void* window) noexcept {
  const std::lock_guard<std::timed_mutex> locked(mutex_);
  const ncclComm_t comm = comm_;
  if (windows_.erase(window) == 0 || comm == nullptr) return true;
  return api_.comm_window_deregister(comm, window) == ncclSuccess;
}

ncclComm_t NcclComm::take() noexcept {
  std::unique_lock<std::timed_mutex> lock(mutex_, std::defer_lock);
  if (lock.try_lock_for(deadlines::kCallOfNccl)) windows_.clear();  // they go with the communicator
  return comm_.exchange(nullptr);
}

void NcclComm::abort() noexcept {
  if (comm_.load() == nullptr) return;
  const ncclComm_t comm = take();
  if (comm == nullptr) return;
  try {
    const device::DeviceScope scope(runtime_, device_);
    api_.comm_abort(comm);
  } catch (const c10::Error&) {
    // The device itself is lost, and with it what the communicator had on it.
  }
}

void NcclComm::finalize() {
  std::set<void*> windows;
  {
    const std::lock_guard<std::timed_mutex> locked(mutex_);
    windows = windows_;
  }
  for (void* window : windows) deregister_window(window);
  call(
      "ncclCommFinalize", [this](ncclComm_t comm) { return api_.comm_finalize(comm); },
      [this] { ZEROSCHED_CHECK(comm_.load() != nullptr, "ncclCommFinalize was given up"); });
  if (const ncclComm_t comm = take(); comm != nullptr) {
    const device::DeviceScope scope(runtime_, device_);
    api_.comm_destroy(comm);
  }
}

}  // namespace zerosched::detail
