#pragma once

#include "optim/schedule_free.h"

namespace zerosched::detail {

/// ScheduleFree+ (arXiv 2605.19095).
class ZEROSCHED_EXPORT AdamWScheduleFreePlusAlgorithm final : public ScheduleFreeAlgorithm {
 public:
  const char* name() const override { return "AdamWScheduleFreePlus"; }
  kernels::Rule rule() const override { return kernels::Rule::adamw_schedule_free_momentum; }
  const std::vector<StateTensor>& state() const override;
  void check(const torch::optim::OptimizerOptions& options) const override;
  std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const override;
  bool takes_loss() const override { return true; }
  double inner_product_weight(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const override;
  /// Of a loss of 0, which moves nothing.
  PreparedStep prepare(const torch::optim::OptimizerOptions& options, const GroupState& state) const override;
  PreparedStep prepare_by_loss(const torch::optim::OptimizerOptions& options, const GroupState& state,
      const LossMeasure& measure) const override;
};

}  // namespace zerosched::detail
