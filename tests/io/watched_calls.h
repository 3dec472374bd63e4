#pragma once

#include <functional>
#include <string>

namespace zerosched::testing {

/// While it lives, `before` is called before each open, fsync and renameat2 of this thread, with the name of the call and
/// the path that is opened, synced or renamed. What it returns is the error with which the call fails; 0: none.
class WatchedCalls {
 public:
  explicit WatchedCalls(std::function<int(const std::string& call, const std::string& path)> before);
  ~WatchedCalls();
  WatchedCalls(const WatchedCalls&) = delete;
  WatchedCalls& operator=(const WatchedCalls&) = delete;
};

}  // namespace zerosched::testing
