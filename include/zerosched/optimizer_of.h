#pragma once

#include <zerosched/export.h>
#include <zerosched/listed_options.h>
#include <zerosched/sharded_optimizer.h>
#include <zerosched/trainable.h>

#include <memory>
#include <utility>
#include <vector>

namespace zerosched {

namespace detail {
struct OptimizerEntry;
}

/// The constructors that all optimizers have. `Self` has a make_algorithm() of its own.
template <typename Self, typename SelfOptions>
class OptimizerOf : public ShardedOptimizer {
 public:
  using Options = SelfOptions;  ///< what it takes

  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws on every
  /// rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or parameters.
  OptimizerOf(Trainable what, std::shared_ptr<Communicator> communicator, Options options = {},
      ShardingOptions sharding = {})
      : ShardedOptimizer(std::move(what), std::move(communicator),
            std::make_unique<Options>(std::move(options)), std::move(sharding), &Self::make_algorithm) {}

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept: see
  /// Trainable::grouped(). Collective. Throws as above.
  OptimizerOf(const Trainable& module, std::vector<ParameterGroup> groups,
      std::shared_ptr<Communicator> communicator, Options options = {}, ShardingOptions sharding = {})
      : OptimizerOf(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
            std::move(sharding)) {}

 private:
  friend struct detail::OptimizerEntry;
  static std::unique_ptr<detail::Algorithm> algorithm() { return Self::make_algorithm(); }
};

}  // namespace zerosched
