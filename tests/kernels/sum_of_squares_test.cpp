#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"
#include "kernels/ranges.h"
#include "kernels/summation.h"

#include <ATen/Parallel.h>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::Array;
using testing::kDtypes;
using testing::normal;
using testing::sizes;

double plain_sum(const Array& array) {
  long double sum = 0;
  for (int64_t i = 0; i < array.numel(); ++i) {
    const long double value = array[i];
    sum += value * value;
  }
  return static_cast<double>(sum);
}

TEST(SumOfSquares, IsTheSum) {
  for (const ScalarType dtype : kDtypes) {
    for (const int64_t numel : sizes()) {
      const Array array = normal(dtype, numel);
      const double expected = plain_sum(array);
      ASSERT_NEAR(sum_of_squares(dtype, array.data(), numel), expected, 1e-14 * expected);
    }
  }
}

TEST(SumOfSquares, SameBitsForAnyNumberOfThreadsAndInstructionSet) {
  const int threads_before = at::get_num_threads();
  for (const ScalarType dtype : kDtypes) {
    const Array array = normal(dtype, 300'001);
    at::set_num_threads(1);
    const double expected = sum_of_squares(dtype, array.data(), array.numel());
    EXPECT_NEAR(expected, plain_sum(array), 1e-13 * expected);
    for (const int threads : {2, 3}) {
      at::set_num_threads(threads);
      EXPECT_EQ(sum_of_squares(dtype, array.data(), array.numel()), expected) << threads << " threads";
    }
    std::vector<int64_t> tile_sizes = sizes();
    tile_sizes.insert(tile_sizes.end(), {kSumTileNumel - 1, kSumTileNumel});
    for (const int64_t numel : tile_sizes) {
      const double baseline = kBaseline.sum_tile(dtype, array.data(), numel);
      for (const Variant* variant : runnable_variants()) {
        ASSERT_EQ(variant->sum_tile(dtype, array.data(), numel), baseline) << variant->name << " " << numel;
      }
    }
  }
  at::set_num_threads(threads_before);
}

// The order of summation.h, spelled out: a GPU adds in the same.
TEST(SumOfSquares, AddsInTheStatedOrder) {
  const int64_t numel = 40 * kSumTileNumel + 5 * kSumGroupNumel + 77;
  const Array array = normal(ScalarType::Float, numel);
  std::vector<double> lanes(kSumLanes);
  for (int64_t tile = 0; tile * kSumTileNumel < numel; ++tile) {
    std::vector<double> groups(kSumGroups);
    for (int64_t group = 0; group < kSumGroups; ++group) {
      std::vector<double> columns(kSumColumns);
      for (int64_t i = 0; i < kSumGroupNumel; ++i) {
        const int64_t at = tile * kSumTileNumel + group * kSumGroupNumel + i;
        if (at < numel)
          columns[i % kSumColumns] += array[at] * array[at];  // exact: a float's square fits a double
      }
      for (size_t half = 16; half > 0; half /= 2) {
        for (size_t i = 0; i < half; ++i) columns[i] += columns[i + half];
      }
      groups[group] = columns[0];
    }
    for (size_t half = 16; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) groups[i] += groups[i + half];
    }
    lanes[tile % kSumLanes] += groups[0];
  }
  for (size_t half = 16; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  EXPECT_EQ(sum_of_squares(ScalarType::Float, array.data(), numel), lanes[0]);
}

TEST(SumOfSquares, HoldsWhatFloatCannot) {
  Array array(ScalarType::Float, 3);
  array.set(0, 1e30), array.set(1, -1e30), array.set(2, 1e-30);
  EXPECT_NEAR(sum_of_squares(ScalarType::Float, array.data(), 3), 2e60, 1e53);
}

TEST(SumOfSquares, NonFiniteElementsShow) {
  for (const ScalarType dtype : kDtypes) {
    Array array = normal(dtype, 50'000);
    array.set(40'000, std::numeric_limits<double>::infinity());
    EXPECT_TRUE(std::isinf(sum_of_squares(dtype, array.data(), array.numel())));
    array.set(3, std::numeric_limits<double>::quiet_NaN());
    EXPECT_TRUE(std::isnan(sum_of_squares(dtype, array.data(), array.numel())));
  }
}

}  // namespace
}  // namespace zerosched::kernels
