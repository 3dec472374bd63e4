#pragma once

#include "kernels/math.h"
#include "kernels/rules/box.h"
#include "kernels/step_scalars.h"

namespace zerosched::kernels {

/// AdamW (arXiv 1711.05101), as torch::optim::AdamW. State: x (the parameters in the state's precision), m, v.
template <template <typename> class Bounds>
struct AdamWRule {
  static constexpr bool kInterpolates = false;
  static constexpr int kStateTensors = state_count(Rule::adamw);

  template <typename Real>
  struct Coefficients {
    Real grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_bias_correction2, eps, shrink,
        minus_step_size;
    Bounds<Real> bounds;

    ZEROSCHED_ELEMENT explicit Coefficients(const StepScalars& s)
        : grad_scale(static_cast<Real>(s.grad_scale)),
          beta1(static_cast<Real>(s.beta1)),
          one_minus_beta1(static_cast<Real>(1 - s.beta1)),
          beta2(static_cast<Real>(s.beta2)),
          one_minus_beta2(static_cast<Real>(1 - s.beta2)),
          inverse_bias_correction2(static_cast<Real>(1 / s.bias_correction2)),
          eps(static_cast<Real>(s.eps)),
          shrink(static_cast<Real>(1 - s.lr * s.weight_decay)),
          minus_step_size(static_cast<Real>(-s.lr / s.bias_correction1)),
          bounds(s) {}
  };

  template <typename Real>
  static ZEROSCHED_ELEMENT Real apply(
      Real gradient, Real& x, Real& m, Real& v, Real&, const Coefficients<Real>& s) {
    const Real g = gradient * s.grad_scale;
    m = fused_multiply_add(s.one_minus_beta1, g, s.beta1 * m);
    v = fused_multiply_add(s.one_minus_beta2 * g, g, s.beta2 * v);
    const Real denominator = square_root(v * s.inverse_bias_correction2) + s.eps;
    x = s.bounds.clamp(fused_multiply_add(s.minus_step_size, m / denominator, x * s.shrink));
    return x;
  }
};

}  // namespace zerosched::kernels
