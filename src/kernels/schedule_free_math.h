#pragma once

#include "kernels/update.h"

// The arithmetic of one element, for every device. The same source gives the same bits everywhere because
// nothing is left to the compiler: fused multiply-adds are written out, division and square root are IEEE's,
// and translation units that include this are built without contraction (-ffp-contract=off, -fmad=false).
#ifdef __CUDACC__
#define ZEROSCHED_ELEMENT __device__ __forceinline__
#else
// always_inline also keeps copies compiled for one instruction set from being merged with another's.
#define ZEROSCHED_ELEMENT static inline __attribute__((always_inline))
#endif

namespace zerosched::kernels {

ZEROSCHED_ELEMENT float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
ZEROSCHED_ELEMENT double fused_multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
ZEROSCHED_ELEMENT float square_root(float a) { return __builtin_sqrtf(a); }
ZEROSCHED_ELEMENT double square_root(double a) { return __builtin_sqrt(a); }

/// lerp(a, b, w) as a + w (b - a) below w = 0.5 and b - (1 - w) (b - a) above, like at::lerp, from the nearer
/// end. Exact to the bit, signed zeros included, at w = 0, at w = 1 and where a = b.
template <typename Real>
struct Interpolation {
  bool from_b;
  bool at_end;
  Real minus_weight_of_other;

  explicit Interpolation(double weight_of_b)
      : from_b(!(weight_of_b < 0.5)),
        at_end(weight_of_b == 0 || weight_of_b == 1),
        minus_weight_of_other(static_cast<Real>(weight_of_b < 0.5 ? -weight_of_b : -(1 - weight_of_b))) {}
};

template <typename Real>
ZEROSCHED_ELEMENT Real interpolate_element(Real a, Real b, const Interpolation<Real>& how) {
  const Real near = how.from_b ? b : a;
  const Real other = how.from_b ? a : b;
  const Real between = fused_multiply_add(how.minus_weight_of_other, near - other, near);
  return how.at_end ? near : between;
}

/// ScheduleFreeScalars in the type that elements are computed in.
template <typename Real>
struct AdamWScheduleFreeCoefficients {
  Real grad_scale, beta2, one_minus_beta2, inverse_bias_correction2, eps, weight_decay, minus_lr;
  Interpolation<Real> y_before, average, y_after;

  explicit AdamWScheduleFreeCoefficients(const ScheduleFreeScalars& s)
      : grad_scale(static_cast<Real>(s.grad_scale)),
        beta2(static_cast<Real>(s.beta2)),
        one_minus_beta2(static_cast<Real>(1 - s.beta2)),
        inverse_bias_correction2(static_cast<Real>(1 / s.bias_correction2)),
        eps(static_cast<Real>(s.eps)),
        weight_decay(static_cast<Real>(s.weight_decay)),
        minus_lr(static_cast<Real>(-s.lr)),
        y_before(s.y_weight_before),
        average(s.c),
        y_after(s.y_weight) {}
};

/// One element of one step; returns y. Without weight decay the old y is not needed.
template <bool kDecays, typename Real>
ZEROSCHED_ELEMENT Real adamw_schedule_free_element(
    Real gradient, Real& z, Real& x, Real& v, const AdamWScheduleFreeCoefficients<Real>& s) {
  const Real g = gradient * s.grad_scale;
  v = fused_multiply_add(s.one_minus_beta2 * g, g, s.beta2 * v);
  Real u = g / (square_root(v * s.inverse_bias_correction2) + s.eps);
  if (kDecays) u = fused_multiply_add(s.weight_decay, interpolate_element(x, z, s.y_before), u);
  z = fused_multiply_add(s.minus_lr, u, z);
  x = interpolate_element(x, z, s.average);
  return interpolate_element(x, z, s.y_after);
}

}  // namespace zerosched::kernels
