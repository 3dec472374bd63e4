// A part of variant_definition.h, which says what its loops may use.
#pragma once

#include "kernels/cpu/streaming.h"
#include "kernels/element_types.h"
#include "kernels/gradient_weight.h"
#include "kernels/magnitude.h"

#include <c10/core/ScalarType.h>

#include <cstdint>

// NOLINTBEGIN(misc-definitions-in-headers): internal to each variant on purpose
namespace zerosched::kernels {
namespace {

// Twice the bytes of the update's, of which stores need a whole vector of 16-bit elements as well.
constexpr int64_t kCopyChunkNumel = 64;

/// Bits as of not_finite_bits, over what was written.
template <typename To, typename From, typename How>
ZEROSCHED_ELEMENT typename Magnitude<To>::Bits copy_elements(
    To* __restrict to, const From* __restrict from, int64_t numel, const How& how) {
  typename Magnitude<To>::Bits not_finite = 0;
  for (int64_t i = 0; i < numel; ++i) {
    To element;
    how.write(element, from[i]);
    to[i] = element;
    not_finite |= not_finite_bits(element);
  }
  return not_finite;
}

template <typename To, typename From, typename How>
bool copy_by(To* to, const From* from, int64_t numel, bool out_of_cache, const How& how) {
  if (!out_of_cache) return copy_elements(to, from, numel, how) == 0;
  alignas(64) To chunk[kCopyChunkNumel];
  typename Magnitude<To>::Bits not_finite = 0;
  int64_t i = 0;
  for (; i + kCopyChunkNumel <= numel; i += kCopyChunkNumel) {
    prefetch_chunk<kCopyChunkNumel>(from + i);
    not_finite |= copy_elements(chunk, from + i, kCopyChunkNumel, how);
    stream_chunk<kCopyChunkNumel>(to + i, chunk);
  }
  not_finite |= copy_elements(to + i, from + i, numel - i, how);
  finish_streaming();
  return not_finite == 0;
}

template <typename To, typename From>
bool copy_typed(void* to, const void* from, int64_t numel, double weight, bool out_of_cache) {
  using Real = typename StateOf<From>::type;
  auto* out = static_cast<To*>(to);
  const auto* in = static_cast<const From*>(from);
  if (weight == 1) return copy_by(out, in, numel, out_of_cache, Converted());
  return copy_by(out, in, numel, out_of_cache, Weighted<Real>{static_cast<Real>(weight)});
}

bool copy_gradient_range(c10::ScalarType to_dtype, void* to, c10::ScalarType from_dtype, const void* from,
    int64_t numel, double weight, bool out_of_cache) {
  const bool same = to_dtype == from_dtype;
  switch (to_dtype) {
    case c10::ScalarType::Double:
      return copy_typed<double, double>(to, from, numel, weight, out_of_cache);
    case c10::ScalarType::BFloat16:
      if (same) return copy_typed<BFloat16, BFloat16>(to, from, numel, weight, out_of_cache);
      return copy_typed<BFloat16, float>(to, from, numel, weight, out_of_cache);
    case c10::ScalarType::Half:
      if (same) return copy_typed<Float16, Float16>(to, from, numel, weight, out_of_cache);
      return copy_typed<Float16, float>(to, from, numel, weight, out_of_cache);
    default:
      if (same) return copy_typed<float, float>(to, from, numel, weight, out_of_cache);
      if (from_dtype == c10::ScalarType::Half)
        return copy_typed<float, Float16>(to, from, numel, weight, out_of_cache);
      return copy_typed<float, BFloat16>(to, from, numel, weight, out_of_cache);
  }
}

template <typename Element>
void clamp_elements(Element* data, int64_t numel, double limit) {
  const auto limit_bits = magnitude_limit<Element>(limit);
  for (int64_t i = 0; i < numel; ++i) data[i] = clamp_magnitude(data[i], limit_bits);
}

void clamp_gradient_range(c10::ScalarType dtype, void* data, int64_t numel, double limit) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return clamp_elements(static_cast<double*>(data), numel, limit);
    case c10::ScalarType::BFloat16:
      return clamp_elements(static_cast<BFloat16*>(data), numel, limit);
    case c10::ScalarType::Half:
      return clamp_elements(static_cast<Float16*>(data), numel, limit);
    default:
      return clamp_elements(static_cast<float*>(data), numel, limit);
  }
}

}  // namespace
}  // namespace zerosched::kernels
// NOLINTEND(misc-definitions-in-headers)
