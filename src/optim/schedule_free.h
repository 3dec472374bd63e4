#pragma once

#include "optim/algorithm.h"

#include <zerosched/export.h>

namespace zerosched::detail {

/// What the Schedule-Free algorithms share: state z, x (and v), and the average of arXiv 2405.15682,
/// section 2.
class ZEROSCHED_EXPORT ScheduleFreeAlgorithm : public Algorithm {
 public:
  Interpolation interpolation(Point point, const GroupState& state) const final;

 protected:
  /// The scalars of averaging, once prepared.scalars.lr is the step's, and the group's state after it. c is `c_factor`
  /// times the step's share of all weights, at most 1.
  static void average(PreparedStep& prepared, const GroupState& state, double beta1, double r,
      double weight_lr_power, double c_factor = 1);

  /// (k+1)/warmup_steps, at most 1.
  static double warmup(const GroupState& state, int64_t warmup_steps);
};

}  // namespace zerosched::detail
