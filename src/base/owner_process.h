#pragma once

namespace zerosched::detail {

/// How many forks lie between this process and the one that loaded the library.
int fork_depth() noexcept;

/// The process in which it was constructed. A child that fork() makes of it inherits all objects, but neither the threads
/// nor the connections behind them: what it does with those hangs, or reaches the other ranks in its parent's name.
class OwnerProcess {
 public:
  bool is_this() const noexcept { return depth_ == fork_depth(); }

 private:
  int depth_ = fork_depth();
};

}  // namespace zerosched::detail
