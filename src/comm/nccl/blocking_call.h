#pragma once

#include "device/runtime.h"

#include <functional>
#include <memory>

namespace zerosched::detail {

/// A call that may never return, because another rank or the device does not do its part, in a thread of its own.
/// Whoever gives up waiting leaves the thread behind: the call has to hold what it uses.
class BlockingCall {
 public:
  /// `device` is the thread's current one from the beginning.
  BlockingCall(device::Runtime& runtime, int device, std::function<void()> call);

  /// Whether it has ended, now or within `seconds`.
  bool ended(double seconds = 0) const;
  /// Throws what the call has thrown; nothing if it has not ended.
  void check() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace zerosched::detail
