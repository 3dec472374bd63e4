#include "comm/failure/whereabouts.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

namespace zerosched::detail {

namespace {

// Of one thread, under the registry's mutex.
struct ThreadPlace {
  const char* outermost = nullptr;
  const Header* header = nullptr;
  std::shared_ptr<const std::string> owner;
  bool is_listed = false;
};

// Never destroyed: other threads look while static destructors run.
struct PlaceRegistry {
  std::mutex mutex;  ///< guards all of it, and every ThreadPlace
  std::vector<ThreadPlace*> inside;
  std::string gave_up;  ///< what a thread waited for last, if that failed
};

PlaceRegistry& registry() {
  static auto* registry = new PlaceRegistry;
  return *registry;
}

std::atomic<bool> has_given_up{false};

thread_local ThreadPlace place;
thread_local const char* innermost = nullptr;

template <typename Change>
void change_place(const Change& change) {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  change();
  const bool is_inside = place.outermost != nullptr || place.header != nullptr;
  if (is_inside == place.is_listed) return;
  auto& inside = registry().inside;
  if (is_inside) {
    inside.push_back(&place);
  } else {
    inside.erase(std::find(inside.begin(), inside.end(), &place));
  }
  place.is_listed = is_inside;
}

std::string collective_of(const ThreadPlace& place) {
  const std::string text = describe(*place.header);
  return place.owner == nullptr ? text : text + " of " + *place.owner;
}

std::string text_of(const ThreadPlace& place) {
  if (place.header == nullptr) return std::string("is in ") + place.outermost;
  return "waits in " + collective_of(place);
}

}  // namespace

InCall::InCall(const char* function) : before_(innermost) {
  innermost = function;
  if (before_ == nullptr) change_place([&] { place.outermost = function; });
}

InCall::~InCall() {
  innermost = before_;
  if (before_ == nullptr) change_place([] { place.outermost = nullptr; });
}

const char* InCall::current_or(const char* otherwise) noexcept {
  return innermost == nullptr ? otherwise : innermost;
}

WaitsIn::WaitsIn(const Header& header, std::shared_ptr<const std::string> owner)
    : exceptions_at_start_(std::uncaught_exceptions()) {
  change_place([&] {
    place.header = &header;
    place.owner = std::move(owner);
  });
}

WaitsIn::~WaitsIn() {
  change_place([this] {
    if (std::uncaught_exceptions() > exceptions_at_start_) {
      registry().gave_up = "gave up " + collective_of(place);
      has_given_up = true;
    }
    place.header = nullptr;
    place.owner = nullptr;
  });
}

void forget_what_was_given_up() noexcept {
  if (!has_given_up.exchange(false)) return;
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().gave_up.clear();
}

std::string whereabouts() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  std::string text;
  for (const ThreadPlace* place : registry().inside) text += (text.empty() ? "" : " and ") + text_of(*place);
  return text.empty() ? registry().gave_up : text;
}

}  // namespace zerosched::detail
