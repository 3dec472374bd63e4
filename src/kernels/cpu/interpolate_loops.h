// A part of variant_definition.h, which says what its loops may use.
#pragma once

#include "kernels/element_types.h"

#include <c10/core/ScalarType.h>
#include <cstdint>

// NOLINTBEGIN(misc-definitions-in-headers): internal to each variant on purpose
namespace zerosched::kernels {
namespace {

template <typename Param, typename Real>
void interpolate_elements(
    Param* __restrict out, const Real* __restrict x, const Real* __restrict z, double weight, int64_t numel) {
  const Lerp<Real> how(weight);
  for (int64_t i = 0; i < numel; ++i) store(out[i], interpolate_element(x[i], z[i], how));
}

void interpolate_range(
    c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight, int64_t numel) {
  const auto run = [&](auto param) {
    using Param = decltype(param);
    using Real = typename StateOf<Param>::type;
    interpolate_elements(
        static_cast<Param*>(out), static_cast<const Real*>(x), static_cast<const Real*>(z), weight, numel);
  };
  switch (param_dtype) {
    case c10::ScalarType::Double:
      return run(double());
    case c10::ScalarType::BFloat16:
      return run(BFloat16());
    case c10::ScalarType::Half:
      return run(Float16());
    default:
      return run(float());
  }
}

}  // namespace
}  // namespace zerosched::kernels
// NOLINTEND(misc-definitions-in-headers)
