#pragma once

#include "kernels/math.h"
#include "kernels/step_scalars.h"

#include <cmath>

namespace zerosched::kernels {

/// What a step's iterate is kept in: [clamp_low, clamp_high], each rounded to the state's type. Infinite bounds
/// leave every bit, as does NaN, which stays; a zero in bounds keeps its sign.
template <typename Real>
struct Box {
  Real low, high;

  ZEROSCHED_ELEMENT explicit Box(const StepScalars& s)
      : low(static_cast<Real>(s.clamp_low)), high(static_cast<Real>(s.clamp_high)) {}

  ZEROSCHED_ELEMENT Real clamp(Real value) const {
    const Real above = value < low ? low : value;
    return above > high ? high : above;
  }
};

/// The same bits for infinite bounds, without the comparisons.
template <typename Real>
struct NoBox {
  ZEROSCHED_ELEMENT explicit NoBox(const StepScalars&) {}
  ZEROSCHED_ELEMENT Real clamp(Real value) const { return value; }
};

ZEROSCHED_ELEMENT bool has_box(const StepScalars& s) {
  return s.clamp_low > -HUGE_VAL || s.clamp_high < HUGE_VAL;
}

}  // namespace zerosched::kernels
