#pragma once

#include <csignal>
#include <thread>
#include <utility>

#include <pthread.h>

namespace zerosched::detail {

/// Keeps all signals from the calling thread, and from threads that it starts, while it lives.
class BlocksSignals {
 public:
  BlocksSignals() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlocksSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlocksSignals(const BlocksSignals&) = delete;
  BlocksSignals& operator=(const BlocksSignals&) = delete;

 private:
  sigset_t before_;
};

/// A thread of the library's own. No signal goes to it: signals are the program's, and its own threads are to
/// handle them. Throws std::system_error where there can be no more threads.
template <typename Function>
std::thread start_thread(Function&& function) {
  const BlocksSignals blocks;
  return std::thread(std::forward<Function>(function));
}

}  // namespace zerosched::detail
