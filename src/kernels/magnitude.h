#pragma once

#include "kernels/element_types.h"

#include <cstdint>
#include <cstring>

// Elements as they are in memory: a sign, and a magnitude whose bits, as integers, are in the order of the
// numbers; infinity is behind all of them, and NaN behind infinity. This looks at elements, and bounds them,
// without the arithmetic of their type.
namespace zerosched::kernels {

template <typename Integer, Integer kInfinityBits>
struct MagnitudeIn {
  using Bits = Integer;
  static constexpr Bits kInfinity = kInfinityBits;
  static constexpr Bits kMask = static_cast<Bits>(~Bits(0)) >> 1;
};
template <typename Element>
struct Magnitude;
template <>
struct Magnitude<float> : MagnitudeIn<uint32_t, 0x7f800000> {};
template <>
struct Magnitude<double> : MagnitudeIn<uint64_t, 0x7ff0000000000000> {};
template <>
struct Magnitude<BFloat16> : MagnitudeIn<uint16_t, 0x7f80> {};
template <>
struct Magnitude<Float16> : MagnitudeIn<uint16_t, 0x7c00> {};

template <typename Element, typename Bits = typename Magnitude<Element>::Bits>
ZEROSCHED_ELEMENT Bits element_bits(Element value) {
  Bits bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

/// 0 if the element is finite, and only then, for ORs over many elements.
template <typename Element, typename Bits = typename Magnitude<Element>::Bits>
ZEROSCHED_ELEMENT Bits not_finite_bits(Element value) {
  using In = Magnitude<Element>;
  const auto magnitude = static_cast<Bits>(element_bits(value) & In::kMask);
  // What is infinity or more carries into the sign.
  return static_cast<Bits>((magnitude + (In::kMask - In::kInfinity + 1)) & ~In::kMask);
}

/// The bits of the largest element that is not above `limit`, which is not negative.
template <typename Element, typename Bits = typename Magnitude<Element>::Bits>
ZEROSCHED_ELEMENT Bits magnitude_limit(double limit) {
  Element nearest;
  store(nearest, static_cast<typename StateOf<Element>::type>(limit));
  // Rounded twice on the way to 16 bits, it is still no more than one step above.
  const Bits bits = element_bits(nearest);
  return static_cast<Bits>(static_cast<double>(load(nearest)) > limit ? bits - 1 : bits);
}

/// The element, or its sign with the magnitude `limit` where its own is larger. NaN stays.
template <typename Element, typename Bits = typename Magnitude<Element>::Bits>
ZEROSCHED_ELEMENT Element clamp_magnitude(Element value, Bits limit) {
  using In = Magnitude<Element>;
  const Bits bits = element_bits(value);
  const auto magnitude = static_cast<Bits>(bits & In::kMask);
  const auto clamped = static_cast<Bits>((bits & ~In::kMask) | limit);
  const Bits chosen = magnitude > limit && magnitude <= In::kInfinity ? clamped : bits;
  std::memcpy(&value, &chosen, sizeof(value));
  return value;
}

}  // namespace zerosched::kernels
