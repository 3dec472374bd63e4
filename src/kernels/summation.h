#pragma once

#include "kernels/powers.h"

#include <cstdint>

// The order in which the powers of a norm (powers.h) are added, the same for every processor, number of threads
// and launch, so that a norm has the same bits everywhere. A range is cut into tiles, a tile into groups, and a group is a matrix:
//
//   group   rows of kSumColumns elements; each column is added up row by row, then the columns pairwise
//   tile    its groups' sums, pairwise
//   range   lane l adds up tiles l, l + kSumLanes, ... in order; then the lanes pairwise
//
// Pairwise: i + (i + n/2) for the first half, and again, down to one. What is missing counts as 0, which
// changes no bit of a sum of powers.
namespace zerosched::kernels {

inline constexpr int64_t kSumColumns = 32;
inline constexpr int64_t kSumRows = 16;
inline constexpr int64_t kSumGroups = 32;
inline constexpr int64_t kSumLanes = 32;
inline constexpr int64_t kSumGroupNumel = kSumColumns * kSumRows;
inline constexpr int64_t kSumTileNumel = kSumGroupNumel * kSumGroups;

template <int64_t kCount, typename Power = Squares>
ZEROSCHED_ELEMENT double add_pairwise(double* sums) {
  for (int64_t half = kCount / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sums[i] = Power::add(sums[i], sums[i + half]);
  }
  return sums[0];
}

}  // namespace zerosched::kernels
