#pragma once

#include "kernels/kernels.h"
#include "kernels/ranges.h"

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

// What the update is tested on.
namespace zerosched::kernels::testing {

/// What a kernel works on. Offsets differ from array to array, so that no two have the same alignment.
struct Range {
  Array y, g, z, x, v;
  Array last;  ///< of rules with four state tensors, which is their v; `v` is their m then

  explicit Range(Dtypes dtypes, int64_t numel, int64_t offset = 0)
      : y(dtypes.param, numel, offset),
        g(dtypes.grad, numel, offset == 0 ? 0 : offset + 1),
        z(state_dtype(dtypes.param), numel, offset == 0 ? 0 : offset + 2),
        x(state_dtype(dtypes.param), numel, offset),
        v(state_dtype(dtypes.param), numel, offset == 0 ? 0 : offset + 3),
        last(state_dtype(dtypes.param), numel, offset == 0 ? 0 : offset + 1) {}

  static Range random(Dtypes dtypes, int64_t numel, uint32_t seed = 1) {
    std::mt19937 generator(seed);
    Range range(dtypes, numel);
    fill_normal(range.g, generator, 0.1);
    fill_normal(range.z, generator, 1.0);
    fill_normal(range.x, generator, 1.0);
    fill_normal(range.v, generator, 0.1);
    for (int64_t i = 0; i < numel; ++i) range.v.set(i, range.v[i] * range.v[i]);
    fill_normal(range.last, generator, 0.1);
    for (int64_t i = 0; i < numel; ++i) range.last.set(i, range.last[i] * range.last[i]);
    return range;
  }

  UpdateRange raw() {
    return {y.dtype(), g.dtype(), y.data(), g.data(), {z.data(), x.data(), v.data(), last.data()}, y.numel()};
  }
  bool same_bits(const Range& other) const {
    return y.same_bits(other.y) && z.same_bits(other.z) && x.same_bits(other.x) && v.same_bits(other.v) &&
           last.same_bits(other.last);
  }
  bool canaries_intact() const {
    return y.canaries_intact() && g.canaries_intact() && z.canaries_intact() && x.canaries_intact() &&
           v.canaries_intact() && last.canaries_intact();
  }
};

inline StepScalars ordinary_scalars() {
  StepScalars s;
  s.grad_scale = 0.25;
  s.lr = 2.5e-2;
  s.beta2 = 0.99;
  s.bias_correction2 = 1 - std::pow(0.99, 5);
  s.eps = 1e-8;
  s.weight_decay = 0.1;
  s.y_weight_before = 0.1;
  s.c = 0.2;
  s.y_weight = 0.15;
  return s;
}

struct NamedStep {
  std::string name;
  Rule rule;
  StepScalars scalars;
};

inline StepScalars in_box(StepScalars scalars, double low, double high) {
  scalars.clamp_low = low;
  scalars.clamp_high = high;
  return scalars;
}

/// Every path through update_by_rule().
inline std::vector<NamedStep> every_rule() {
  const StepScalars plain = ordinary_scalars();
  StepScalars without_decay = plain, first_of_radam = plain, with_momentum = plain, nesterov = plain;
  without_decay.weight_decay = 0;
  StepScalars second_step = plain, no_average = plain;
  second_step.c = 0.5;
  no_average.y_weight_before = no_average.y_weight = 1;  // beta1 = 0
  first_of_radam.adaptive = false;
  with_momentum.beta1 = nesterov.beta1 = 0.9;
  with_momentum.bias_correction1 = 0.4;
  nesterov.nesterov = true;
  StepScalars decays_at_z = with_momentum;
  decays_at_z.weight_decay = 0;
  decays_at_z.z_shrink = 0.9975;
  std::vector<NamedStep> steps = {{"adamw_schedule_free", Rule::adamw_schedule_free, plain},
      {"adamw_schedule_free without decay", Rule::adamw_schedule_free, without_decay},
      {"adamw_schedule_free not adaptive", Rule::adamw_schedule_free, first_of_radam},
      {"adamw_schedule_free second step", Rule::adamw_schedule_free, second_step},
      {"adamw_schedule_free beta1 = 0", Rule::adamw_schedule_free, no_average},
      {"adamw_schedule_free_momentum", Rule::adamw_schedule_free_momentum, with_momentum},
      {"adamw_schedule_free_momentum, decay at z", Rule::adamw_schedule_free_momentum, decays_at_z},
      {"sgd_schedule_free", Rule::sgd_schedule_free, plain},
      {"sgd_schedule_free second step", Rule::sgd_schedule_free, second_step},
      {"adamw", Rule::adamw, with_momentum}, {"sgd", Rule::sgd, with_momentum},
      {"sgd nesterov", Rule::sgd, nesterov}};
  // In a box that many iterates leave: they are normal about 0.
  for (size_t i = 0, unbounded = steps.size(); i < unbounded; ++i) {
    steps.push_back({steps[i].name + " clamped", steps[i].rule, in_box(steps[i].scalars, -0.8, 0.3)});
  }
  return steps;
}

}  // namespace zerosched::kernels::testing
