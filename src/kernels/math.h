#pragma once

#include <cstdint>
#include <cstring>

// What the arithmetic of one element is made of, for every device; the update rules are in rules/. The same
// source gives the same bits everywhere because nothing is left to the compiler: fused multiply-adds are
// written out, division and square root are IEEE's, and translation units that include this are built without
// contraction (-ffp-contract=off, -fmad=false).
#ifdef __CUDACC__
#define ZEROSCHED_ELEMENT __host__ __device__ __forceinline__
#else
// always_inline also keeps copies compiled for one instruction set from being merged with another's.
#define ZEROSCHED_ELEMENT inline __attribute__((always_inline))
#endif

namespace zerosched::kernels {

ZEROSCHED_ELEMENT float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
ZEROSCHED_ELEMENT double fused_multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
ZEROSCHED_ELEMENT float square_root(float a) { return __builtin_sqrtf(a); }
ZEROSCHED_ELEMENT double square_root(double a) { return __builtin_sqrt(a); }

// Unsigned integers of the same size, for masks.
template <typename Real>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

/// `a` where the mask's bits are 0, `b` where they are 1. Compilers vectorise this, but not a condition that is
/// the same for every element.
template <typename Real, typename Bits = typename BitsOf<Real>::type>
ZEROSCHED_ELEMENT Real select(Bits mask, Real a, Real b) {
  Bits a_bits, b_bits;
  std::memcpy(&a_bits, &a, sizeof(a));
  std::memcpy(&b_bits, &b, sizeof(b));
  const Bits chosen_bits = (a_bits & ~mask) | (b_bits & mask);
  Real chosen;
  std::memcpy(&chosen, &chosen_bits, sizeof(chosen));
  return chosen;
}

/// `zero` stays 0 while values are finite, and is NaN from the first that is not. As cheap as it gets: one
/// instruction, that vectorises, into an accumulator that is apart from the arithmetic.
template <typename Real>
ZEROSCHED_ELEMENT Real zero_if_finite(Real zero, Real value) {
#if defined(__FP_FAST_FMAF) || defined(__CUDA_ARCH__)
  return fused_multiply_add(value, Real(0), zero);
#else
  return zero + value * Real(0);  // where a fused one is a function call
#endif
}

/// lerp(a, b, w) as a + w (b - a) below w = 0.5 and b - (1 - w) (b - a) above, like at::lerp: from the nearer
/// end. Exact to the bit, signed zeros included, at w = 0, at w = 1 and where a = b.
template <typename Real>
struct Lerp {
  using Bits = typename BitsOf<Real>::type;
  Bits near_is_b;
  Bits far_is_b;  // at w = 0 and w = 1 the near end stands in for the far one, which then has no influence
  Real minus_weight_of_far;

  ZEROSCHED_ELEMENT explicit Lerp(double weight_of_b)
      : near_is_b(weight_of_b < 0.5 ? Bits(0) : ~Bits(0)),
        far_is_b(weight_of_b == 0 || weight_of_b == 1 ? near_is_b : ~near_is_b),
        minus_weight_of_far(static_cast<Real>(weight_of_b < 0.5 ? -weight_of_b : -(1 - weight_of_b))) {}
};

template <typename Real>
ZEROSCHED_ELEMENT Real interpolate_element(Real a, Real b, const Lerp<Real>& how) {
  const Real near = select(how.near_is_b, a, b);
  const Real far = select(how.far_is_b, a, b);
  return fused_multiply_add(how.minus_weight_of_far, near - far, near);
}

/// The same bits for a weight that leaves a the nearer end, without the selects, which are most of the
/// instructions of a Schedule-Free step. Every weight of an ordinary step is one: 1 - beta1 and, from the
/// third step, c.
template <typename Real>
struct LerpNearA {
  Real minus_weight_of_b;

  static ZEROSCHED_ELEMENT bool covers(double weight_of_b) { return weight_of_b > 0 && weight_of_b < 0.5; }
  ZEROSCHED_ELEMENT explicit LerpNearA(double weight_of_b)
      : minus_weight_of_b(static_cast<Real>(-weight_of_b)) {}
};

template <typename Real>
ZEROSCHED_ELEMENT Real interpolate_element(Real a, Real b, const LerpNearA<Real>& how) {
  return fused_multiply_add(how.minus_weight_of_b, a - b, a);
}

}  // namespace zerosched::kernels
