#pragma once

#include <chrono>

namespace zerosched::detail {

/// A steady clock that stands still while the process does: what a job that was suspended (SIGSTOP, scontrol suspend, a
/// virtual machine that was paused) has slept through, its ranks have not waited for.
///
/// A standstill is a second or more in which nobody asked, so whoever measures a time with it asks more often than that.
/// Process-wide. Any thread.
std::chrono::steady_clock::time_point running_now() noexcept;

}  // namespace zerosched::detail
