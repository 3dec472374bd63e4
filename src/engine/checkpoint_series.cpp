#include "engine/checkpoint_series.h"

#include "base/random_id.h"

#include <map>
#include <mutex>

namespace zerosched::detail {

namespace {

struct SeriesRegistry {
  std::mutex mutex;
  std::map<std::string, int> optimizers;  ///< under mutex: how many have each series
};

// Never destroyed: optimizers may live until the process ends.
SeriesRegistry& registry() {
  static auto& registry = *new SeriesRegistry;
  return registry;
}

}  // namespace

CheckpointSeries::~CheckpointSeries() { enter(-1); }

const std::string& CheckpointSeries::id() {
  if (!id_.empty()) return id_;
  id_ = random_name();
  enter(1);
  return id_;
}

void CheckpointSeries::take_over(const std::string& id) {
  enter(-1);
  id_ = id;
  enter(1);
}

bool CheckpointSeries::lives(const std::string& id) {
  SeriesRegistry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.optimizers.count(id) > 0;
}

void CheckpointSeries::enter(int change) const {
  if (id_.empty()) return;
  SeriesRegistry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if ((all.optimizers[id_] += change) <= 0) all.optimizers.erase(id_);
}

}  // namespace zerosched::detail
