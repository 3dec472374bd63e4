// A part of variant_definition.h, which says what its loops may use.
#pragma once

#include "kernels/element_types.h"
#include "kernels/inner_product.h"
#include "kernels/summation.h"

#include <c10/core/ScalarType.h>
#include <cstdint>

// NOLINTBEGIN(misc-definitions-in-headers): internal to each variant on purpose
namespace zerosched::kernels {
namespace {

template <typename Grad, typename Real>
ZEROSCHED_ELEMENT double inner_product_of_group(const Grad* g, const Real* z, const Real* x, int64_t numel) {
  double columns[kSumColumns] = {};
  const int64_t whole = numel / kSumColumns * kSumColumns;
  for (int64_t i = 0; i < whole; i += kSumColumns) {
    for (int64_t j = 0; j < kSumColumns; ++j) {
      columns[j] = with_product(columns[j], static_cast<double>(load(g[i + j])),
          static_cast<double>(z[i + j]), static_cast<double>(x[i + j]));
    }
  }
  for (int64_t i = whole; i < numel; ++i) {
    columns[i - whole] = with_product(columns[i - whole], static_cast<double>(load(g[i])),
        static_cast<double>(z[i]), static_cast<double>(x[i]));
  }
  return add_pairwise<kSumColumns>(columns);
}

template <typename Grad>
double inner_product_of_tile_as(
    const void* gradient, const void* z_values, const void* x_values, int64_t numel) {
  using Real = typename StateOf<Grad>::type;
  const auto* g = static_cast<const Grad*>(gradient);
  const auto* z = static_cast<const Real*>(z_values);
  const auto* x = static_cast<const Real*>(x_values);
  double groups[kSumGroups] = {};
  for (int64_t group = 0; group * kSumGroupNumel < numel; ++group) {
    const int64_t begin = group * kSumGroupNumel;
    groups[group] = inner_product_of_group(
        g + begin, z + begin, x + begin, numel - begin < kSumGroupNumel ? numel - begin : kSumGroupNumel);
  }
  return add_pairwise<kSumGroups>(groups);
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
