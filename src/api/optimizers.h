#pragma once

#include "base/check.h"
#include "optim/algorithm.h"

#include <zerosched/communicator.h>
#include <zerosched/optimizer_of.h>
#include <zerosched/trainable.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// An optimizer, of the one list of all.
struct OptimizerEntry {
  const char* name;  ///< the class's
  std::unique_ptr<Algorithm> (*algorithm)();
  std::unique_ptr<ListedOptions> (*options)();  ///< the defaults
  std::unique_ptr<ShardedOptimizer> (*make)(Trainable what, std::shared_ptr<Communicator> communicator,
      const ListedOptions& options, ShardingOptions sharding);

  template <typename Optimizer>
  static OptimizerEntry of(const char* name) {
    using Options = typename Optimizer::Options;
    return {name, OptimizerOf<Optimizer, Options>::algorithm,
        []() -> std::unique_ptr<ListedOptions> { return std::make_unique<Options>(); },
        [](Trainable what, std::shared_ptr<Communicator> communicator, const ListedOptions& options,
            ShardingOptions sharding) -> std::unique_ptr<ShardedOptimizer> {
          const auto* own = dynamic_cast<const Options*>(&options);
          ZEROSCHED_CHECK(own != nullptr,
              "make_optimizer: the options are of another optimizer; take default_options().");
          return std::make_unique<Optimizer>(
              std::move(what), std::move(communicator), *own, std::move(sharding));
        }};
  }
};

const std::vector<OptimizerEntry>& optimizers();
/// By its name, as make_optimizer() takes it. Throws if there is none.
const OptimizerEntry& optimizer_entry(const std::string& name);

}  // namespace zerosched::detail
