#include "base/leak.h"

#include <mutex>
#include <utility>
#include <vector>

namespace zerosched::detail {

void keep_for_ever(std::shared_ptr<void> object) {
  // Themselves never destroyed, so that nothing is freed when static destructors run either.
  static auto* mutex = new std::mutex;
  static auto* kept = new std::vector<std::shared_ptr<void>>;
  const std::lock_guard<std::mutex> lock(*mutex);
  kept->push_back(std::move(object));
}

}  // namespace zerosched::detail
