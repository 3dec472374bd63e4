#include "base/blocked_time.h"

namespace zerosched::detail {
namespace {

thread_local std::chrono::steady_clock::duration of_this_thread{0};

}  // namespace

std::chrono::steady_clock::duration waited() noexcept { return of_this_thread; }

BlockedTimer::~BlockedTimer() { of_this_thread += std::chrono::steady_clock::now() - start_; }

}  // namespace zerosched::detail
