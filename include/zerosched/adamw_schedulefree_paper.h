#pragma once

#include <zerosched/adamw_schedulefree.h>
#include <zerosched/trainable.h>

#include <memory>
#include <vector>

namespace zerosched {

/// Those of AdamWScheduleFree.
using AdamWScheduleFreePaperOptions = AdamWScheduleFreeOptions;

/// Schedule-Free AdamW as algorithm 1 of arXiv 2405.15682 writes it: the bias of v is corrected in the
/// learning rate, and eps is added to the uncorrected root. State as for AdamWScheduleFree.
class ZEROSCHED_EXPORT AdamWScheduleFreePaper : public ShardedOptimizer {
 public:
  /// Over a module, or over groups of parameters with options of their own: see Trainable. Collective. Throws
  /// on every rank if an option is out of range, a parameter cannot be trained, or ranks differ in options or
  /// parameters.
  AdamWScheduleFreePaper(Trainable what, std::shared_ptr<Communicator> communicator,
      AdamWScheduleFreePaperOptions options = {}, ShardingOptions sharding = {});

  /// Over those parameters of `module` that are in `groups`, with their options; all else of the module is kept:
  /// see Trainable::grouped(). Collective. Throws as above.
  AdamWScheduleFreePaper(const Trainable& module, std::vector<ParameterGroup> groups,
      std::shared_ptr<Communicator> communicator, AdamWScheduleFreePaperOptions options = {},
      ShardingOptions sharding = {});
};

}  // namespace zerosched
