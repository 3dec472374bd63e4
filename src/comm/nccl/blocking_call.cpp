#include "comm/nccl/blocking_call.h"

#include "base/start_thread.h"
#include "base/while_running.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <utility>

#include <pthread.h>

namespace zerosched::detail {

struct BlockingCall::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;        // under mutex
  std::exception_ptr error;  // under mutex
};

BlockingCall::BlockingCall(device::Runtime& runtime, int device, std::function<void()> call)
    : state_(std::make_shared<State>()) {
  start_thread([state = state_, call = std::move(call), &runtime, device]() mutable {
    pthread_setname_np(pthread_self(), "zerosched-call");
    std::exception_ptr error;
    {
      const WhileRunning running;
      try {
        runtime.begin_thread(device);
        call();
      } catch (...) {
        error = std::current_exception();
      }
      call = nullptr;  // and with it, here, what it holds
    }
    const std::lock_guard<std::mutex> lock(state->mutex);
    state->error = error;
    state->ended = true;
    state->changed.notify_all();
  }).detach();
}

bool BlockingCall::ended(double seconds) const {
  std::unique_lock<std::mutex> lock(state_->mutex);
  return state_->changed.wait_for(
      lock, std::chrono::duration<double>(seconds), [this] { return state_->ended; });
}

void BlockingCall::check() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->error) std::rethrow_exception(state_->error);
}

}  // namespace zerosched::detail
