#pragma once

#include <functional>
#include <string>

namespace zerosched::testing {

/// While it lives, `before` is called with the path of each file that this thread opens.
class WatchedOpens {
 public:
  explicit WatchedOpens(std::function<void(const std::string& path)> before);
  ~WatchedOpens();
  WatchedOpens(const WatchedOpens&) = delete;
  WatchedOpens& operator=(const WatchedOpens&) = delete;
};

}  // namespace zerosched::testing
