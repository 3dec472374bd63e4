#pragma once

#include "kernels/math.h"
#include "kernels/rules/box.h"
#include "kernels/step_scalars.h"

namespace zerosched::kernels {

/// SGD with momentum, as torch::optim::SGD. State: x (the parameters in the state's precision), m.
template <bool kNesterov, template <typename> class Bounds>
struct SGDRule {
  static constexpr bool kInterpolates = false;
  static constexpr int kStateTensors = state_count(Rule::sgd);

  template <typename Real>
  struct Coefficients {
    Real grad_scale, momentum, weight_decay, minus_lr;
    Bounds<Real> bounds;

    ZEROSCHED_ELEMENT explicit Coefficients(const StepScalars& s)
        : grad_scale(static_cast<Real>(s.grad_scale)),
          momentum(static_cast<Real>(s.beta1)),
          weight_decay(static_cast<Real>(s.weight_decay)),
          minus_lr(static_cast<Real>(-s.lr)),
          bounds(s) {}
  };

  template <typename Real>
  static ZEROSCHED_ELEMENT Real apply(
      Real gradient, Real& x, Real& m, Real&, Real&, const Coefficients<Real>& s) {
    const Real g = fused_multiply_add(s.weight_decay, x, gradient * s.grad_scale);
    m = fused_multiply_add(s.momentum, m, g);
    x = s.bounds.clamp(
        fused_multiply_add(s.minus_lr, kNesterov ? fused_multiply_add(s.momentum, m, g) : m, x));
    return x;
  }
};

}  // namespace zerosched::kernels
