#pragma once

#include "optim/algorithm.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace zerosched::detail {

/// The options of every parameter group, read anew at each step because schedulers change them.
using GroupOptions = std::vector<torch::optim::OptimizerOptions*>;

/// What every rank must step with alike: the options of all groups and the loss scale, as one list of numbers for ranks
/// to compare.
class Steering {
 public:
  /// `options`: of each group, now; only their names matter.
  Steering(const Algorithm& algorithm, const std::vector<const torch::optim::OptimizerOptions*>& options);

  /// Numbers in a list.
  int64_t count() const { return static_cast<int64_t>(names_.size()); }
  /// loss_scale 0: not known yet.
  std::vector<double> values(const GroupOptions& options, double loss_scale) const;
  /// Throws what the optimizer's constructor says of options out of range, with the group.
  void check(const GroupOptions& options) const;

  /// What of rank `rank`'s values differs from rank `reference_rank`'s by more than the last bits of a schedule that
  /// unlike processors compute, as a sentence with both; empty if nothing does. Values that either does not know are
  /// passed over.
  std::string difference(const std::vector<double>& own, int rank, const std::vector<double>& reference,
      int reference_rank) const;

  /// Copies of `options` with these values.
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> with_values(
      const GroupOptions& options, const std::vector<double>& values) const;

 private:
  const Algorithm& algorithm_;
  std::vector<std::string> names_;  ///< "lr of parameter group 0", ..., "the loss scale"
};

}  // namespace zerosched::detail
