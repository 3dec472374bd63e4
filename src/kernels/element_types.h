#pragma once

#include "kernels/math.h"

#include <cstdint>
#include <cstring>
#if defined(__CUDA_ARCH__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

// The 16-bit types of parameters and gradients, to and from float32. To nearest, ties to even; NaN becomes
// 0x7fff, which is what GPUs' own conversions make of it. Processors without those get integer arithmetic
// without branches, which compilers vectorise, and which does not need float32 subnormals, so that a
// processor that flushes them gives the same bits.
namespace zerosched::kernels {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

/// The type of the state of parameters of this type.
template <typename Param>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};

ZEROSCHED_ELEMENT float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

ZEROSCHED_ELEMENT uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

ZEROSCHED_ELEMENT float load(float value) { return value; }
ZEROSCHED_ELEMENT double load(double value) { return value; }
ZEROSCHED_ELEMENT float load(BFloat16 value) {
  return float_of_bits(static_cast<uint32_t>(value.bits) << 16);
}

ZEROSCHED_ELEMENT void store(float& out, float value) { out = value; }
ZEROSCHED_ELEMENT void store(double& out, double value) { out = value; }

#if defined(__CUDA_ARCH__)

ZEROSCHED_ELEMENT float load(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
ZEROSCHED_ELEMENT void store(BFloat16& out, float value) {
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
ZEROSCHED_ELEMENT void store(Float16& out, float value) {
  out.bits = __half_as_ushort(__float2half_rn(value));
}

#else

ZEROSCHED_ELEMENT float load(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fffU;
  const uint32_t sign = (value.bits & 0x8000U) << 16;
  const uint32_t rebiased = (magnitude << 13) + ((127U - 15U) << 23);
  // Infinity and NaN have all exponent bits set, in float32 as well.
  const uint32_t ordinary = magnitude >= 0x7c00U ? rebiased + ((127U - 15U) << 23) : rebiased;
  // Subnormals count 2^-24.
  const uint32_t subnormal = bits_of_float(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return float_of_bits(sign | (magnitude < 0x0400U ? subnormal : ordinary));
}

ZEROSCHED_ELEMENT void store(BFloat16& out, float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? 0x7fffU : rounded);
}

ZEROSCHED_ELEMENT void store(Float16& out, float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t magnitude = bits & 0x7fffffffU;
  const uint32_t sign = (bits >> 16) & 0x8000U;
  // Rounds in integers; what overflows carries into the exponent of infinity.
  const uint32_t ordinary = (magnitude - ((127U - 15U) << 23) + 0x0fffU + ((magnitude >> 13) & 1U)) >> 13;
  // Below 2^-14, adding 0.5 rounds to multiples of 2^-24, float32's spacing there.
  const uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000U;
  const uint32_t finite = magnitude < 0x38800000U ? subnormal : ordinary;
  const uint32_t rounded = magnitude >= 0x47800000U ? 0x7c00U : finite;
  out.bits = static_cast<uint16_t>(magnitude > 0x7f800000U ? 0x7fffU : sign | rounded);
}

#endif

}  // namespace zerosched::kernels
