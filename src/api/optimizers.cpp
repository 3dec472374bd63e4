#include "api/optimizers.h"

#include "base/check.h"

#include <zerosched/optimizers.h>
#include <zerosched/zerosched.h>

#include <algorithm>
#include <cctype>
#include <utility>

namespace zerosched {

namespace detail {
namespace {

std::string letters_of(const std::string& name) {
  std::string letters;
  for (const char character : name) {
    if (character != '-') letters += static_cast<char>(std::tolower(static_cast<unsigned char>(character)));
  }
  return letters;
}

}  // namespace

const std::vector<OptimizerEntry>& optimizers() {
  static const std::vector<OptimizerEntry> all = {
      OptimizerEntry::of<AdamWScheduleFree>("AdamWScheduleFree"),
      OptimizerEntry::of<AdamWScheduleFreePaper>("AdamWScheduleFreePaper"),
      OptimizerEntry::of<AdamWScheduleFreePlus>("AdamWScheduleFreePlus"),
      OptimizerEntry::of<RAdamScheduleFree>("RAdamScheduleFree"),
      OptimizerEntry::of<SGDScheduleFree>("SGDScheduleFree"),
      OptimizerEntry::of<GPAAdamW>("GPAAdamW"),
      OptimizerEntry::of<AdamW>("AdamW"),
      OptimizerEntry::of<SGD>("SGD"),
  };
  return all;
}

const OptimizerEntry& optimizer_entry(const std::string& name) {
  std::string names;
  for (const OptimizerEntry& each : optimizers()) {
    if (letters_of(each.name) == letters_of(name)) return each;
    names += (names.empty() ? "" : ", ") + std::string(each.name);
  }
  ZEROSCHED_CHECK(false, "there is no optimizer '", name, "'; expected one of ", names, ".");
}

}  // namespace detail

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const auto& each : detail::optimizers()) names.emplace_back(each.name);
  return names;
}

std::unique_ptr<ListedOptions> default_options(const std::string& name) {
  return detail::optimizer_entry(name).options();
}

std::unique_ptr<ShardedOptimizer> make_optimizer(const std::string& name, Trainable what,
    std::shared_ptr<Communicator> communicator, const ListedOptions& options, ShardingOptions sharding) {
  return detail::optimizer_entry(name).make(
      std::move(what), std::move(communicator), options, std::move(sharding));
}

}  // namespace zerosched
