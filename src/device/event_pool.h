#pragma once

#include "device/runtime.h"

#include <mutex>
#include <vector>

namespace zerosched::device {

/// Events of one device for use again and again: making one costs more than recording it. Thread-safe.
class EventPool {
 public:
  /// `runtime` must outlive this.
  EventPool(Runtime& runtime, int device) : runtime_(runtime), device_(device) {}
  /// Every event that was taken must have been given back.
  ~EventPool();
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  /// An event that nobody waits for any more but by waits that are queued already.
  Event take();
  void give_back(Event event);

 private:
  Runtime& runtime_;
  const int device_;
  std::mutex mutex_;
  std::vector<Event> free_;  ///< under mutex_
};

}  // namespace zerosched::device
