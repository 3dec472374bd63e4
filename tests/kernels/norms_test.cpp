#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"
#include "kernels/ranges.h"
#include "kernels/summation.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <gtest/gtest.h>

#include <algorithm>
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

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double plain_sum(const Array& array, double p) {
  long double sum = 0;
  for (int64_t i = 0; i < array.numel(); ++i)
    sum += std::pow(std::abs(static_cast<long double>(array[i])), p);
  return static_cast<double>(sum);
}

TEST(SumOfPowers, IsTheSum) {
  for (const ScalarType dtype : kDtypes) {
    for (const int64_t numel : sizes()) {
      const Array array = normal(dtype, numel);
      for (const double p : {0.5, 1.0, 1.5, 2.0, 3.0, 7.25}) {
        const double expected = plain_sum(array, p);
        ASSERT_NEAR(sum_of_powers(dtype, array.data(), numel, p), expected, 1e-13 * expected)
            << p << " " << numel;
      }
    }
  }
}

TEST(SumOfPowers, OfMagnitudesIsExact) {
  for (const ScalarType dtype : kDtypes) {
    Array array(dtype, 100'003);
    double expected = 0;
    for (int64_t i = 0; i < array.numel(); ++i) {
      array.set(i, static_cast<double>(i % 251) * (i % 2 == 0 ? 1 : -1));
      expected += static_cast<double>(i % 251);
    }
    EXPECT_EQ(sum_of_powers(dtype, array.data(), array.numel(), 1), expected) << c10::toString(dtype);
  }
}

TEST(SumOfPowers, OfSquaresIsTheSumOfSquares) {
  for (const ScalarType dtype : kDtypes) {
    const Array array = normal(dtype, 300'001);
    EXPECT_EQ(sum_of_powers(dtype, array.data(), array.numel(), 2),
        sum_of_squares(dtype, array.data(), array.numel()));
  }
}

TEST(SumOfPowers, SameBitsForAnyNumberOfThreadsAndInstructionSet) {
  const int threads_before = at::get_num_threads();
  for (const ScalarType dtype : kDtypes) {
    const Array array = normal(dtype, 300'001);
    for (const double p : {1.0, 2.0, 1.5}) {
      at::set_num_threads(1);
      const double expected = sum_of_powers(dtype, array.data(), array.numel(), p);
      for (const int threads : {2, 3}) {
        at::set_num_threads(threads);
        EXPECT_EQ(sum_of_powers(dtype, array.data(), array.numel(), p), expected) << threads << " threads";
      }
    }
    std::vector<int64_t> tile_sizes = sizes();
    tile_sizes.insert(tile_sizes.end(), {kSumTileNumel - 1, kSumTileNumel});
    for (const int64_t numel : tile_sizes) {
      for (const double p : {1.0, 2.0, 1.5, kInfinity}) {
        const double baseline = kBaseline.sum_powers_of_tile(p, dtype, array.data(), numel);
        for (const Variant* variant : runnable_variants()) {
          ASSERT_EQ(variant->sum_powers_of_tile(p, dtype, array.data(), numel), baseline)
              << variant->name << " " << numel << ", p = " << p;
        }
      }
    }
  }
  at::set_num_threads(threads_before);
}

TEST(SumOfPowers, NonFiniteElementsShow) {
  for (const ScalarType dtype : kDtypes) {
    for (const double p : {0.5, 1.0, 3.0}) {
      Array array = normal(dtype, 50'000);
      array.set(40'000, -kInfinity);
      EXPECT_EQ(sum_of_powers(dtype, array.data(), array.numel(), p), kInfinity);
      array.set(3, kNaN);
      EXPECT_TRUE(std::isnan(sum_of_powers(dtype, array.data(), array.numel(), p)));
    }
  }
}

TEST(SumOfPowers, OtherPowersAreNamed) {
  const float value = 1;
  for (const double p : {0.0, -1.0, kInfinity, kNaN}) {
    EXPECT_THROW(sum_of_powers(ScalarType::Float, &value, 1, p), c10::Error) << p;
  }
}

TEST(MaxAbs, IsTheLargest) {
  const int threads_before = at::get_num_threads();
  for (const ScalarType dtype : kDtypes) {
    std::vector<int64_t> some_sizes = sizes();
    some_sizes.push_back(300'001);
    for (const int64_t numel : some_sizes) {
      const Array array = normal(dtype, numel);
      double expected = 0;
      for (int64_t i = 0; i < numel; ++i) expected = std::max(expected, std::abs(array[i]));
      for (const int threads : {1, 3}) {
        at::set_num_threads(threads);
        ASSERT_EQ(max_abs(dtype, array.data(), numel), expected) << c10::toString(dtype) << " " << numel;
      }
    }
  }
  at::set_num_threads(threads_before);
}

TEST(MaxAbs, NonFiniteElementsShowWhereverTheyAre) {
  for (const ScalarType dtype : kDtypes) {
    for (const int64_t numel : {int64_t{1}, int64_t{33}, int64_t{50'001}}) {
      for (const int64_t bad : {int64_t{0}, numel / 2, numel - 1}) {
        for (const double sign : {1.0, -1.0}) {
          Array array = normal(dtype, numel);
          array.set(bad, std::copysign(kInfinity, sign));
          EXPECT_EQ(max_abs(dtype, array.data(), numel), kInfinity);
          array.set(bad, std::copysign(kNaN, sign));
          EXPECT_TRUE(std::isnan(max_abs(dtype, array.data(), numel))) << c10::toString(dtype) << " " << bad;
        }
      }
    }
  }
}

}  // namespace
}  // namespace zerosched::kernels
