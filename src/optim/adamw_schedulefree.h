#pragma once

#include "optim/schedule_free.h"

namespace zerosched::detail {

/// Schedule-Free AdamW in the package's form; what the paper's form shares with it.
class ZEROSCHED_EXPORT AdamWScheduleFreeAlgorithm : public ScheduleFreeAlgorithm {
 public:
  const char* name() const override { return "AdamWScheduleFree"; }
  kernels::Rule rule() const final { return kernels::Rule::adamw_schedule_free; }
  const std::vector<StateTensor>& state() const final;
  void check(const torch::optim::OptimizerOptions& options) const final;
  std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const final;
  PreparedStep prepare(const torch::optim::OptimizerOptions& options, const GroupState& state) const override;
};

}  // namespace zerosched::detail
