#pragma once

#include "optim/schedule_free.h"

namespace zerosched::detail {

/// Schedule-Free AdamW in the package's form; what the paper's form shares with it. With inner momentum in some group it
/// has m, which every group has then.
class ZEROSCHED_EXPORT AdamWScheduleFreeAlgorithm : public ScheduleFreeAlgorithm {
 public:
  const char* name() const override { return "AdamWScheduleFree"; }
  kernels::Rule rule() const final {
    return has_momentum_ ? kernels::Rule::adamw_schedule_free_momentum : kernels::Rule::adamw_schedule_free;
  }
  const std::vector<StateTensor>& state() const final;
  void settle(const std::vector<const torch::optim::OptimizerOptions*>& options) final;
  void check(const torch::optim::OptimizerOptions& options) const final;
  std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const final;
  PreparedStep prepare(const torch::optim::OptimizerOptions& options, const GroupState& state) const override;

 protected:
  /// average() by the group's options.
  static void average_by(
      const torch::optim::OptimizerOptions& options, PreparedStep& prepared, const GroupState& state);

 private:
  bool has_momentum_ = false;
  bool is_settled_ = false;
};

}  // namespace zerosched::detail
