#include "comm/nccl/comm.h"

#include "comm/backoff.h"

#include <c10/util/Exception.h>

#include <chrono>

namespace zerosched::detail {

namespace {

// How long abort() waits for a call that another thread is in. Calls do not block, but the driver may, in a
// launch behind a kernel that does not end; then it is the abort that frees the launch.
constexpr auto kPatienceWithCalls = std::chrono::seconds(2);

constexpr int kSymmetricWindow = 0x01;  // NCCL_WIN_COLL_SYMMETRIC

}  // namespace

NcclComm::NcclComm(const NcclApi& api, device::Runtime& runtime, int device)
    : api_(api), runtime_(runtime), device_(device) {}

NcclComm::~NcclComm() { abort(); }

void NcclComm::start(int size, int rank, const ncclUniqueId& id) {
  const device::DeviceScope scope(runtime_, device_);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  const ncclResult_t result = api_.comm_init_rank_config(&comm, size, id, rank, &config);
  comm_ = comm;
  TORCH_CHECK(result == ncclSuccess || result == ncclInProgress, text_of("ncclCommInitRankConfig", result));
}

void NcclComm::await_start(const GiveUp& give_up) {
  await("ncclCommInitRankConfig", ncclInProgress, give_up);
}

void NcclComm::call(
    const char* name, const std::function<ncclResult_t(ncclComm_t)>& function, const GiveUp& give_up) {
  ncclResult_t result = ncclInvalidUsage;
  {
    const std::lock_guard<std::timed_mutex> lock(mutex_);
    if (const ncclComm_t comm = comm_; comm != nullptr) {
      const device::DeviceScope scope(runtime_, device_);
      result = function(comm);
    }
  }
  await(name, result, give_up);
}

void NcclComm::await(const char* name, ncclResult_t result, const GiveUp& give_up) {
  for (Backoff backoff(Backoff::Kind::waiting); result == ncclInProgress; result = poll()) {
    give_up();
    backoff.pause(false);
  }
  if (result == ncclSuccess) return;
  give_up();  // a communicator that was aborted meanwhile explains the error
  TORCH_CHECK(false, text_of(name, result));
}

ncclResult_t NcclComm::poll() {
  const std::lock_guard<std::timed_mutex> lock(mutex_);
  const ncclComm_t comm = comm_;
  if (comm == nullptr) return ncclInvalidUsage;
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = api_.comm_get_async_error(comm, &state);
  return result == ncclSuccess ? state : result;
}

std::string NcclComm::async_error() {
  if (comm_.load() == nullptr) return {};
  const ncclResult_t result = poll();
  if (result == ncclSuccess || result == ncclInProgress) return {};
  return text_of("an asynchronous operation", result);
}

std::string NcclComm::text_of(const char* name, ncclResult_t result) {
  std::string text = std::string(name) + " failed: " + api_.get_error_string(result);
  const std::lock_guard<std::timed_mutex> lock(mutex_);
  const char* detail = api_.get_last_error(comm_);
  if (detail != nullptr && *detail != '\0') text += std::string(" (") + detail + ")";
  return text + "; NCCL_DEBUG=INFO in the environment tells more";
}

void* NcclComm::register_window(void* memory, size_t byte_count, const GiveUp& give_up) {
  void* window = nullptr;  // filled in by the time that the call is no longer in progress
  call(
      "ncclCommWindowRegister",
      [&](ncclComm_t comm) {
        return api_.comm_window_register(comm, memory, byte_count, &window, kSymmetricWindow);
      },
      give_up);
  const std::lock_guard<std::timed_mutex> lock(mutex_);
  if (window != nullptr) windows_.insert(window);
  return window;
}

void NcclComm::deregister_window(void* window) noexcept {
  const std::lock_guard<std::timed_mutex> lock(mutex_);
  if (const ncclComm_t comm = comm_; windows_.erase(window) > 0 && comm != nullptr) {
    api_.comm_window_deregister(comm, window);
  }
}

ncclComm_t NcclComm::take() noexcept {
  std::unique_lock<std::timed_mutex> lock(mutex_, std::defer_lock);
  if (lock.try_lock_for(kPatienceWithCalls)) windows_.clear();  // they go with the communicator
  return comm_.exchange(nullptr);
}

void NcclComm::abort() noexcept {
  const ncclComm_t comm = take();
  if (comm == nullptr) return;
  try {
    const device::DeviceScope scope(runtime_, device_);
    api_.comm_abort(comm);
  } catch (const c10::Error&) {
    // The device itself is lost, and with it what the communicator had on it.
  }
}

void NcclComm::close(double seconds) noexcept {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  try {
    const auto windows = windows_;
    for (void* window : windows) deregister_window(window);
    call(
        "ncclCommFinalize", [this](ncclComm_t comm) { return api_.comm_finalize(comm); },
        [end] { TORCH_CHECK(Clock::now() < end, "ncclCommFinalize is not through"); });
    const ncclComm_t comm = take();
    const device::DeviceScope scope(runtime_, device_);
    api_.comm_destroy(comm);
  } catch (const c10::Error&) {
    abort();
  }
}

}  // namespace zerosched::detail
