#include "base/while_running.h"

#include "base/owner_process.h"

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace zerosched::detail {

namespace {

// What a call into a driver takes that is not stuck.
constexpr auto kPatience = std::chrono::seconds(1);

// Never destroyed: threads look at it while static destructors run.
struct ProcessLife {
  std::mutex mutex;
  std::condition_variable changed;
  int inside = 0;     // under mutex: threads that hold a WhileRunning
  bool over = false;  // under mutex
  OwnerProcess owner;
};

ProcessLife& life() {
  static auto* life = new ProcessLife;
  return *life;
}

void end() {
  if (!life().owner.is_this()) return;  // a child's threads are not those that are inside
  std::unique_lock<std::mutex> lock(life().mutex);
  life().over = true;
  life().changed.wait_for(lock, kPatience, [] { return life().inside == 0; });
}

}  // namespace

WhileRunning::WhileRunning() {
  {
    const std::lock_guard<std::mutex> lock(life().mutex);
    if (!life().over) {
      ++life().inside;
      return;
    }
  }
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

WhileRunning::~WhileRunning() {
  const std::lock_guard<std::mutex> lock(life().mutex);
  --life().inside;
  life().changed.notify_all();
}

void WhileRunning::watch_exit() {
  static const int registered = std::atexit(end);
  static_cast<void>(registered);
}

bool WhileRunning::is_over() noexcept {
  const std::lock_guard<std::mutex> lock(life().mutex);
  return life().over;
}

}  // namespace zerosched::detail
