#include "base/running_time.h"

#include <atomic>

namespace zerosched::detail {

namespace {

using std::chrono::steady_clock;
using Ticks = steady_clock::duration::rep;

// Longer than a thread that has something to do is kept from a core.
constexpr steady_clock::duration kStandstill = std::chrono::seconds(1);

std::atomic<Ticks> last_asked{0};
std::atomic<Ticks> stood_still{0};

}  // namespace

steady_clock::time_point running_now() noexcept {
  const Ticks now = steady_clock::now().time_since_epoch().count();
  const Ticks gap = now - last_asked.exchange(now);
  if (gap >= kStandstill.count()) stood_still += gap;
  return steady_clock::time_point(steady_clock::duration(now - stood_still));
}

}  // namespace zerosched::detail
