#pragma once

#include "kernels/math.h"

#include <cmath>
#include <cstdint>
#include <cstring>

// What a norm of order p adds up: |g|^p of every element, or for the largest magnitude, as which p = infinity
// counts, that. `with` takes an element into a sum, `add` one sum into another. All in double.
namespace zerosched::kernels {

/// p = 2.
struct Squares {
  ZEROSCHED_ELEMENT double with(double sum, double value) const {
    return fused_multiply_add(value, value, sum);
  }
  static ZEROSCHED_ELEMENT double add(double a, double b) { return a + b; }
};

/// p = 1.
struct Magnitudes {
  ZEROSCHED_ELEMENT double with(double sum, double value) const { return sum + __builtin_fabs(value); }
  static ZEROSCHED_ELEMENT double add(double a, double b) { return a + b; }
};

/// p = infinity. NaN if an element is.
struct Largest {
  ZEROSCHED_ELEMENT double with(double largest, double value) const {
    return add(largest, __builtin_fabs(value));
  }
  // Without signs, numbers are in the order of their bits, and NaN is beyond infinity.
  static ZEROSCHED_ELEMENT double add(double a, double b) {
    int64_t a_bits, b_bits;
    std::memcpy(&a_bits, &a, sizeof(a));
    std::memcpy(&b_bits, &b, sizeof(b));
    return a_bits < b_bits ? b : a;
  }
};

/// Any other p > 0. The one function here whose last bit is the mathematical library's.
struct Powers {
  double p;

  ZEROSCHED_ELEMENT double with(double sum, double value) const {
    return sum + ::pow(__builtin_fabs(value), p);
  }
  static ZEROSCHED_ELEMENT double add(double a, double b) { return a + b; }
};

/// Calls `function` with what has the arithmetic of order p, and returns its result.
template <typename Function>
inline __attribute__((always_inline)) auto with_power(double p, const Function& function) {
  if (p == 2) return function(Squares());
  if (p == 1) return function(Magnitudes());
  if (p == HUGE_VAL) return function(Largest());
  return function(Powers{p});
}

}  // namespace zerosched::kernels
