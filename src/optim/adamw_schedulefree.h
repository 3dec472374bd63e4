#pragma once

#include "optim/schedule_free.h"

#include <zerosched/adamw_schedulefree.h>

namespace zerosched::detail {

/// Schedule-Free AdamW in either form. With inner momentum in some group it has m, which every group has then.
class AdamWScheduleFreeAlgorithm final : public AlgorithmOf<AdamWScheduleFreeOptions> {
 public:
  AdamWScheduleFreeAlgorithm(const char* name, Prepare prepare)
      : AlgorithmOf(name, kernels::Rule::adamw_schedule_free, prepare) {}

  void settle(const std::vector<const Options*>& options) override;
  void check(const Options& options) const override;

 private:
  bool is_settled_ = false;
};

/// A step in the package's form but for its averaging, which `average_by` adds once lr is the step's: the paper's form
/// differs in lr and the correction of v's bias.
PreparedStep prepare_adamw(const AdamWScheduleFreeOptions& o, const GroupState& state);
void average_by(const AdamWScheduleFreeOptions& o, PreparedStep& prepared, const GroupState& state);

}  // namespace zerosched::detail
