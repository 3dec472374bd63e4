#pragma once

namespace zerosched::detail {

/// What a thread of the library's own holds while it uses CUDA or MPI, if nobody is sure to join it. Once main() has
/// returned, or exit() was called, both are torn down: a thread that wants to go on then is parked for ever instead,
/// with all that it holds, and the end of the process waits a second for those that are in the middle of something.
class WhileRunning {
 public:
  WhileRunning();
  ~WhileRunning();
  WhileRunning(const WhileRunning&) = delete;
  WhileRunning& operator=(const WhileRunning&) = delete;

  /// To be called once CUDA is in use: what is registered later with atexit() is called earlier.
  static void watch_exit();
  /// Whether the process is ending.
  static bool is_over() noexcept;
};

}  // namespace zerosched::detail
