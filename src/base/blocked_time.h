#pragma once

#include <chrono>

namespace zerosched::detail {

/// How long the calling thread has been blocked in Work::wait(), of whatever communicator, since it began.
/// Of one thread: what a thread beside training waits for, a loader's broadcast say, delays no step.
std::chrono::steady_clock::duration waited() noexcept;

/// Adds its life to waited(). For the transports' waits that block the host, and where they do block; they do
/// not nest. A Work that passes wait() on to another one must leave this to it, or time counts twice.
class BlockedTimer {
 public:
  BlockedTimer() noexcept : start_(std::chrono::steady_clock::now()) {}
  ~BlockedTimer();
  BlockedTimer(const BlockedTimer&) = delete;
  BlockedTimer& operator=(const BlockedTimer&) = delete;

 private:
  std::chrono::steady_clock::time_point start_;
};

}  // namespace zerosched::detail
