#include "optim/schedule_free.h"

#include "base/check.h"

#include <algorithm>
#include <cmath>

namespace zerosched::detail {

void average(PreparedStep& prepared, const GroupState& state, double beta1, double r, double weight_lr_power,
    double c_factor) {
  kernels::StepScalars& s = prepared.scalars;
  const auto step = static_cast<double>(state.k + 1);
  GroupState& next = prepared.next;
  next = state;
  next.lr_max = std::max(state.lr_max, s.lr);
  const double lr_weight = std::pow(next.lr_max, weight_lr_power);
  double weight = std::pow(step, r) * lr_weight;
  if (next.lr_max == 0 && weight_lr_power < 0) weight = 0;  // not infinity
  next.weight_sum = state.weight_sum + weight;
  ZEROSCHED_CHECK(std::isfinite(weight) && std::isfinite(next.weight_sum), "step ", state.k + 1,
      " weighs (k+1)^r lr_max^weight_lr_power in the average, and with r = ", r,
      ", weight_lr_power = ", weight_lr_power, " and lr_max = ", next.lr_max,
      " that is beyond the largest number. Choose a smaller r.");
  ZEROSCHED_CHECK(next.lr_max == 0 || lr_weight > 0, "step ", state.k + 1,
      " weighs lr_max^weight_lr_power in the average, and with weight_lr_power = ", weight_lr_power,
      " and lr_max = ", next.lr_max,
      " that is below the smallest number, so x would never move. Choose a smaller "
      "weight_lr_power.");
  // lr = 0 so far: nothing has weight yet, and 0/0 must not reach x.
  s.c = next.weight_sum == 0 ? 0 : std::min(1.0, c_factor * weight / next.weight_sum);
  s.y_weight_before = state.y_weight;
  s.y_weight = 1 - beta1;
  next.k = state.k + 1;
  next.y_weight = s.y_weight;
}

void use_decays(kernels::StepScalars& scalars, const GroupState& state, double beta1, double beta2) {
  const auto step = static_cast<double>(state.k + 1);
  scalars.beta1 = beta1;
  scalars.beta2 = beta2;
  scalars.bias_correction1 = 1 - std::pow(beta1, step);
  scalars.bias_correction2 = 1 - std::pow(beta2, step);
}

double warmup(const GroupState& state, int64_t warmup_steps) {
  return state.k < warmup_steps ? static_cast<double>(state.k + 1) / static_cast<double>(warmup_steps) : 1.0;
}

}  // namespace zerosched::detail
