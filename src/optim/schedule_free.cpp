#include "optim/schedule_free.h"

#include <algorithm>
#include <cmath>

namespace zerosched::detail {

Interpolation ScheduleFreeAlgorithm::interpolation(Point point, const GroupState& state) const {
  return {1, 0, point == Point::y ? state.y_weight : 0.0};
}

void ScheduleFreeAlgorithm::average(
    PreparedStep& prepared, const GroupState& state, double beta1, double r, double weight_lr_power) {
  kernels::StepScalars& s = prepared.scalars;
  const auto step = static_cast<double>(state.k + 1);
  GroupState& next = prepared.next;
  next = state;
  next.lr_max = std::max(state.lr_max, s.lr);
  double weight = std::pow(step, r) * std::pow(next.lr_max, weight_lr_power);
  if (next.lr_max == 0 && weight_lr_power < 0) weight = 0;  // not infinity
  next.weight_sum = state.weight_sum + weight;
  // lr = 0 so far: nothing has weight yet, and 0/0 must not reach x.
  s.c = next.weight_sum == 0 ? 0 : weight / next.weight_sum;
  s.y_weight_before = state.y_weight;
  s.y_weight = 1 - beta1;
  next.k = state.k + 1;
  next.y_weight = s.y_weight;
}

double ScheduleFreeAlgorithm::warmup(const GroupState& state, int64_t warmup_steps) {
  return state.k < warmup_steps ? static_cast<double>(state.k + 1) / static_cast<double>(warmup_steps) : 1.0;
}

}  // namespace zerosched::detail
