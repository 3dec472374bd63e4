// A part of variant_definition.h, which says what its loops may use.
#pragma once

#include "kernels/cpu/sum_loops.h"
#include "kernels/element_types.h"
#include "kernels/inner_product.h"

#include <c10/core/ScalarType.h>
#include <cstdint>

// NOLINTBEGIN(misc-definitions-in-headers): internal to each variant on purpose
namespace zerosched::kernels {
namespace {

template <typename Grad>
double inner_product_of_tile_as(
    const void* gradient, const void* z_values, const void* x_values, int64_t numel) {
  using Real = typename StateOf<Grad>::type;
  const auto* g = static_cast<const Grad*>(gradient);
  const auto* z = static_cast<const Real*>(z_values);
  const auto* x = static_cast<const Real*>(x_values);
  return sum_tile_with<Magnitudes>(
      [&](double sum, int64_t i) {
        return with_product(
            sum, static_cast<double>(load(g[i])), static_cast<double>(z[i]), static_cast<double>(x[i]));
      },
      numel);
}

double inner_product_of_tile(
    c10::ScalarType grad_dtype, const void* g, const void* z, const void* x, int64_t numel) {
  switch (grad_dtype) {
    case c10::ScalarType::Double:
      return inner_product_of_tile_as<double>(g, z, x, numel);
    case c10::ScalarType::BFloat16:
      return inner_product_of_tile_as<BFloat16>(g, z, x, numel);
    case c10::ScalarType::Half:
      return inner_product_of_tile_as<Float16>(g, z, x, numel);
    default:
      return inner_product_of_tile_as<float>(g, z, x, numel);
  }
}

}  // namespace
}  // namespace zerosched::kernels
// NOLINTEND(misc-definitions-in-headers)
