#pragma once

#include <zerosched/communicator.h>
#include <zerosched/export.h>
#include <zerosched/listed_options.h>
#include <zerosched/sharded_optimizer.h>
#include <zerosched/trainable.h>

#include <memory>
#include <string>
#include <vector>

// For programs that let their users choose an optimizer by name. Letters of names count, neither their case nor hyphens:
// "AdamWScheduleFree", "adamw-schedulefree".
namespace zerosched {

/// Names of all optimizers' classes. Local.
ZEROSCHED_EXPORT std::vector<std::string> optimizer_names();

/// The default options of the optimizer of that name, to be changed by ListedOptions::set(). Throws if there is none, and
/// says which there are. Local.
ZEROSCHED_EXPORT std::unique_ptr<ListedOptions> default_options(const std::string& name);

/// The optimizer of that name, with options of default_options(). Collective. Throws as default_options() and the class's
/// constructor.
ZEROSCHED_EXPORT std::unique_ptr<ShardedOptimizer> make_optimizer(const std::string& name, Trainable what,
    std::shared_ptr<Communicator> communicator, const ListedOptions& options, ShardingOptions sharding = {});

}  // namespace zerosched
