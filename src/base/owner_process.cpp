#include "base/owner_process.h"

#include <atomic>

#include <pthread.h>

namespace zerosched::detail {

namespace {

std::atomic<int> depth{0};

}  // namespace

int fork_depth() noexcept {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++depth; });
  static_cast<void>(registered);
  return depth;
}

}  // namespace zerosched::detail
