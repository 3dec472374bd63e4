#pragma once

#include <c10/core/ScalarType.h>

namespace zerosched::kernels {

/// Whether gradients of one dtype are copied to memory of the other: the same, or float32 from and to 16 bits.
inline bool converts_gradient(c10::ScalarType from, c10::ScalarType to) {
  using c10::ScalarType;
  const auto is_16_bit = [](ScalarType dtype) {
    return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  };
  return from == to || (from == ScalarType::Float && is_16_bit(to)) ||
         (is_16_bit(from) && to == ScalarType::Float);
}

/// Whether parameters of one dtype are updated with gradients of the other: the same, float32 for 16 bits, and bfloat16 for
/// float32, which is what is left of a gradient that was sent so.
inline bool can_update(c10::ScalarType param, c10::ScalarType gradient) {
  using c10::ScalarType;
  return param == gradient || (param != ScalarType::Double && gradient == ScalarType::Float) ||
         (param == ScalarType::Float && gradient == ScalarType::BFloat16);
}

}  // namespace zerosched::kernels
