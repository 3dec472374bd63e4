#include "device/event_pool.h"

namespace zerosched::device {

EventPool::~EventPool() {
  for (const Event event : free_) runtime_.destroy_event(event);
}

Event EventPool::take() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      const Event event = free_.back();
      free_.pop_back();
      return event;
    }
  }
  return runtime_.create_event(device_);
}

void EventPool::give_back(Event event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(event);
}

}  // namespace zerosched::device
