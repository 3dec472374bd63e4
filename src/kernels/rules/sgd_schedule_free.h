#pragma once

#include "kernels/math.h"
#include "kernels/rules/box.h"
#include "kernels/step_scalars.h"

namespace zerosched::kernels {

/// Schedule-Free SGD (arXiv 2405.15682). State: z, x.
template <template <typename> class Bounds>
struct SGDScheduleFreeRule {
  static constexpr bool kInterpolates = true;
  static constexpr int kStateTensors = state_count(Rule::sgd_schedule_free);

  template <typename Real, template <typename> class Interpolated = Lerp>
  struct Coefficients {
    Real grad_scale, weight_decay, minus_lr;
    Interpolated<Real> y_before, average, y_after;
    Bounds<Real> bounds;

    ZEROSCHED_ELEMENT explicit Coefficients(const StepScalars& s)
        : grad_scale(static_cast<Real>(s.grad_scale)),
          weight_decay(static_cast<Real>(s.weight_decay)),
          minus_lr(static_cast<Real>(-s.lr)),
          y_before(s.y_weight_before),
          average(s.c),
          y_after(s.y_weight),
          bounds(s) {}
  };

  template <typename Real, typename Scalars>
  static ZEROSCHED_ELEMENT Real apply(Real gradient, Real& z, Real& x, Real&, Real&, const Scalars& s) {
    const Real u =
        fused_multiply_add(s.weight_decay, interpolate_element(x, z, s.y_before), gradient * s.grad_scale);
    z = s.bounds.clamp(fused_multiply_add(s.minus_lr, u, z));
    x = interpolate_element(x, z, s.average);
    return interpolate_element(x, z, s.y_after);
  }
};

}  // namespace zerosched::kernels
