#pragma once

#include <zerosched/adamw_schedulefree.h>

#include <memory>
#include <vector>

namespace zerosched {

/// Those of AdamWScheduleFree.
using AdamWScheduleFreePaperOptions = AdamWScheduleFreeOptions;

/// Schedule-Free AdamW as algorithm 1 of arXiv 2405.15682 writes it: the bias of v is corrected in the
/// learning rate, and eps is added to the uncorrected root. State as for AdamWScheduleFree.
class ZEROSCHED_EXPORT AdamWScheduleFreePaper : public ShardedOptimizer {
 public:
  /// Over the parameters of `module`, under their names, and its buffers. Collective. Throws on every rank if an
  /// option is out of range, or if ranks differ in options or parameters.
  AdamWScheduleFreePaper(const torch::nn::Module& module, std::shared_ptr<Communicator> communicator,
      AdamWScheduleFreePaperOptions options = {}, ShardingOptions sharding = {});

  /// Over groups with options of their own. Module buffers are not known here and not broadcast. Collective.
  /// Throws as above, and if a parameter or a name is in two places.
  AdamWScheduleFreePaper(std::vector<ParameterGroup> groups, std::shared_ptr<Communicator> communicator,
      AdamWScheduleFreePaperOptions options = {}, ShardingOptions sharding = {});
};

}  // namespace zerosched
