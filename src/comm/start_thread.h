#pragma once

#include <csignal>
#include <thread>
#include <utility>

#include <pthread.h>

namespace zerosched::detail {

/// A thread of the library's own. No signal goes to it: signals are the program's, and its own threads are to
/// handle them.
template <typename Function>
std::thread start_thread(Function&& function) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::forward<Function>(function));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace zerosched::detail
