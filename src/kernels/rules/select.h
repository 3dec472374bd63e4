#pragma once

#include "kernels/rules/adamw.h"
#include "kernels/rules/adamw_schedule_free.h"
#include "kernels/rules/adamw_schedule_free_momentum.h"
#include "kernels/rules/box.h"
#include "kernels/rules/sgd.h"
#include "kernels/rules/sgd_schedule_free.h"

namespace zerosched::kernels {

/// Calls `function` with an object of the type that has the arithmetic of `rule` under these scalars, of
/// which only adaptive, nesterov and whether there is weight decay matter. Bounds: Box, whatever the scalars
/// are, or NoBox, for those that have none.
template <template <typename> class Bounds, typename Function>
inline __attribute__((always_inline)) void with_rule_in(
    Rule rule, const StepScalars& scalars, const Function& function) {
  switch (rule) {
    case Rule::adamw_schedule_free:
      if (!scalars.adaptive) return function(AdamWScheduleFreeRule<true, false, Bounds>());
      if (scalars.weight_decay != 0) return function(AdamWScheduleFreeRule<true, true, Bounds>());
      return function(AdamWScheduleFreeRule<false, true, Bounds>());
    case Rule::adamw_schedule_free_momentum:
      if (scalars.weight_decay != 0) return function(AdamWScheduleFreeMomentumRule<true, Bounds>());
      return function(AdamWScheduleFreeMomentumRule<false, Bounds>());
    case Rule::sgd_schedule_free:
      return function(SGDScheduleFreeRule<Bounds>());
    case Rule::adamw:
      return function(AdamWRule<Bounds>());
    case Rule::sgd:
      if (scalars.nesterov) return function(SGDRule<true, Bounds>());
      return function(SGDRule<false, Bounds>());
  }
}

/// The same with bounds where the scalars have any: unbounded steps do not pay for them.
template <typename Function>
inline __attribute__((always_inline)) void with_rule(
    Rule rule, const StepScalars& scalars, const Function& function) {
  if (has_box(scalars)) return with_rule_in<Box>(rule, scalars, function);
  with_rule_in<NoBox>(rule, scalars, function);
}

}  // namespace zerosched::kernels
