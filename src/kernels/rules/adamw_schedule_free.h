#pragma once

#include "kernels/math.h"
#include "kernels/rules/box.h"
#include "kernels/step_scalars.h"

namespace zerosched::kernels {

/// Schedule-Free AdamW (arXiv 2405.15682, algorithm 1 and the package's form of it). State: z, x, v.
/// Without kAdaptive the gradient is not divided by its root mean square: RAdam's first steps.
template <bool kDecays, bool kAdaptive, template <typename> class Bounds>
struct AdamWScheduleFreeRule {
  static constexpr bool kInterpolates = true;
  static constexpr int kStateTensors = state_count(Rule::adamw_schedule_free);

  template <typename Real, template <typename> class Interpolated = Lerp>
  struct Coefficients {
    Real grad_scale, beta2, one_minus_beta2, inverse_bias_correction2, eps, weight_decay, minus_lr;
    Interpolated<Real> y_before, average, y_after;
    Bounds<Real> bounds;

    ZEROSCHED_ELEMENT explicit Coefficients(const StepScalars& s)
        : grad_scale(static_cast<Real>(s.grad_scale)),
          beta2(static_cast<Real>(s.beta2)),
          one_minus_beta2(static_cast<Real>(1 - s.beta2)),
          inverse_bias_correction2(static_cast<Real>(1 / s.bias_correction2)),
          eps(static_cast<Real>(s.eps)),
          weight_decay(static_cast<Real>(s.weight_decay)),
          minus_lr(static_cast<Real>(-s.lr)),
          y_before(s.y_weight_before),
          average(s.c),
          y_after(s.y_weight),
          bounds(s) {}
  };

  /// One element of one step; returns y. Without weight decay the old y is not needed.
  template <typename Real, typename Scalars>
  static ZEROSCHED_ELEMENT Real apply(Real gradient, Real& z, Real& x, Real& v, Real&, const Scalars& s) {
    const Real g = gradient * s.grad_scale;
    v = fused_multiply_add(s.one_minus_beta2 * g, g, s.beta2 * v);
    Real u = kAdaptive ? g / (square_root(v * s.inverse_bias_correction2) + s.eps) : g;
    if (kDecays) u = fused_multiply_add(s.weight_decay, interpolate_element(x, z, s.y_before), u);
    z = s.bounds.clamp(fused_multiply_add(s.minus_lr, u, z));
    x = interpolate_element(x, z, s.average);
    return interpolate_element(x, z, s.y_after);
  }
};

}  // namespace zerosched::kernels
