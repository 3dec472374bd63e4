#pragma once

#include "kernels/rules/adamw.h"
#include "kernels/rules/adamw_schedule_free.h"
#include "kernels/rules/sgd.h"
#include "kernels/rules/sgd_schedule_free.h"

namespace zerosched::kernels {

/// Calls `function` with an object of the type that has the arithmetic of `rule` under these scalars, of
/// which only adaptive, nesterov and whether there is weight decay matter.
template <typename Function>
inline __attribute__((always_inline)) void with_rule(
    Rule rule, const StepScalars& scalars, const Function& function) {
  switch (rule) {
    case Rule::adamw_schedule_free:
      if (!scalars.adaptive) return function(AdamWScheduleFreeRule<true, false>());
      if (scalars.weight_decay != 0) return function(AdamWScheduleFreeRule<true>());
      return function(AdamWScheduleFreeRule<false>());
    case Rule::sgd_schedule_free:
      return function(SGDScheduleFreeRule());
    case Rule::adamw:
      return function(AdamWRule());
    case Rule::sgd:
      if (scalars.nesterov) return function(SGDRule<true>());
      return function(SGDRule<false>());
  }
}

}  // namespace zerosched::kernels
