// A part of variant_definition.h, which says what its loops may use.
#pragma once

#include "kernels/element_types.h"
#include "kernels/summation.h"

#include <c10/core/ScalarType.h>
#include <cstdint>

// NOLINTBEGIN(misc-definitions-in-headers): internal to each variant on purpose
namespace zerosched::kernels {
namespace {

/// with(sum, i): a sum that has taken element i. Elements [begin, begin + numel).
template <typename Power, typename With>
ZEROSCHED_ELEMENT double sum_group(const With& with, int64_t begin, int64_t numel) {
  double columns[kSumColumns] = {};
  const int64_t whole = numel / kSumColumns * kSumColumns;
  for (int64_t i = 0; i < whole; i += kSumColumns) {
    for (int64_t j = 0; j < kSumColumns; ++j) columns[j] = with(columns[j], begin + i + j);
  }
  for (int64_t i = whole; i < numel; ++i) columns[i - whole] = with(columns[i - whole], begin + i);
  return add_pairwise<kSumColumns, Power>(columns);
}

/// Sums are added as Power::add does.
template <typename Power, typename With>
double sum_tile_with(const With& with, int64_t numel) {
  double groups[kSumGroups] = {};
  for (int64_t g = 0; g * kSumGroupNumel < numel; ++g) {
    const int64_t begin = g * kSumGroupNumel;
    groups[g] =
        sum_group<Power>(with, begin, numel - begin < kSumGroupNumel ? numel - begin : kSumGroupNumel);
  }
  return add_pairwise<kSumGroups, Power>(groups);
}

template <typename Power, typename Value>
double sum_tile(const Power& power, const Value* data, int64_t numel) {
  return sum_tile_with<Power>(
      [&](double sum, int64_t i) { return power.with(sum, static_cast<double>(load(data[i]))); }, numel);
}

template <typename Power>
double sum_tile_by(const Power& power, c10::ScalarType dtype, const void* data, int64_t numel) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return sum_tile(power, static_cast<const double*>(data), numel);
    case c10::ScalarType::BFloat16:
      return sum_tile(power, static_cast<const BFloat16*>(data), numel);
    case c10::ScalarType::Half:
      return sum_tile(power, static_cast<const Float16*>(data), numel);
    default:
      return sum_tile(power, static_cast<const float*>(data), numel);
  }
}

double sum_squares_of_tile(c10::ScalarType dtype, const void* data, int64_t numel) {
  return sum_tile_by(Squares(), dtype, data, numel);
}

double sum_powers_of_tile(double p, c10::ScalarType dtype, const void* data, int64_t numel) {
  return with_power(p, [&](const auto& power) { return sum_tile_by(power, dtype, data, numel); });
}

}  // namespace
}  // namespace zerosched::kernels
// NOLINTEND(misc-definitions-in-headers)
