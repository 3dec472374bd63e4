#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"
#include "kernels/ranges.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::Array;
using testing::kDtypes;
using testing::normal;
using testing::sizes;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// The largest of the dtype that is not above `limit`, found by going down from it.
double rounded_down(ScalarType dtype, double limit) {
  Array one(dtype, 1);
  double from = limit;
  do {
    one.set(0, from);
    from = std::nextafter(static_cast<float>(from), -1.0F);
  } while (one[0] > limit);
  return one[0];
}

TEST(ClampGradient, MagnitudesAreAtMostTheLimitRoundedTowardsZero) {
  for (const ScalarType dtype : kDtypes) {
    for (const double limit : {0.0, 0.1, 0.5, 1.0 + 1e-5, 1.0 / 3}) {
      const double in_dtype = dtype == ScalarType::Double ? limit : rounded_down(dtype, limit);
      ASSERT_LE(in_dtype, limit);
      for (const int64_t numel : sizes()) {
        const Array before = normal(dtype, numel);
        Array after = before;
        clamp_gradient(dtype, after.data(), numel, limit);
        for (int64_t i = 0; i < numel; ++i) {
          ASSERT_EQ(after[i], std::clamp(before[i], -in_dtype, in_dtype))
              << c10::toString(dtype) << " " << limit;
          ASSERT_EQ(std::signbit(after[i]), std::signbit(before[i]));
        }
        ASSERT_TRUE(after.canaries_intact());
      }
    }
  }
}

TEST(ClampGradient, InfinityIsClampedAndNaNStays) {
  for (const ScalarType dtype : kDtypes) {
    Array array = normal(dtype, 1000);
    array.set(0, kInfinity), array.set(500, -kInfinity), array.set(999, kNaN);
    Array unlimited = array;
    clamp_gradient(dtype, array.data(), 1000, 0.5);
    EXPECT_EQ(array[0], 0.5);
    EXPECT_EQ(array[500], -0.5);
    EXPECT_TRUE(std::isnan(array[999]));
    // A limit beyond the dtype's largest number is that number; without a limit everything stays.
    const Array before = unlimited;
    clamp_gradient(dtype, unlimited.data(), 1000, kInfinity);
    EXPECT_TRUE(unlimited.same_bits(before)) << c10::toString(dtype);
    clamp_gradient(dtype, unlimited.data(), 1000, std::numeric_limits<double>::max());
    EXPECT_TRUE(std::isfinite(unlimited[0]));
    EXPECT_TRUE(std::isfinite(unlimited[500]));
    EXPECT_GE(unlimited[0], dtype == ScalarType::Half ? 65504.0 : 3e38);
    EXPECT_TRUE(std::isnan(unlimited[999]));
  }
}

TEST(ClampGradient, SameBitsForAnyNumberOfThreadsAndInstructionSet) {
  const int threads_before = at::get_num_threads();
  for (const ScalarType dtype : kDtypes) {
    for (const int64_t numel : sizes()) {
      const Array before = normal(dtype, numel);
      Array expected = before;
      kBaseline.clamp_gradient(dtype, expected.data(), numel, 0.3);
      for (const Variant* variant : runnable_variants()) {
        for (const int64_t offset : {0, 1, 4}) {
          Array after(dtype, numel, offset);
          after = before;
          variant->clamp_gradient(dtype, after.data(), numel, 0.3);
          ASSERT_TRUE(after.same_bits(expected))
              << variant->name << " " << c10::toString(dtype) << " " << numel;
          ASSERT_TRUE(after.canaries_intact());
        }
      }
    }
    const Array before = normal(dtype, 300'001);
    Array expected = before;
    kBaseline.clamp_gradient(dtype, expected.data(), before.numel(), 0.3);
    for (const int threads : {1, 2, 3}) {
      at::set_num_threads(threads);
      Array after = before;
      clamp_gradient(dtype, after.data(), after.numel(), 0.3);
      EXPECT_TRUE(after.same_bits(expected)) << threads << " threads";
    }
  }
  at::set_num_threads(threads_before);
}

TEST(ClampGradient, OtherLimitsAreNamed) {
  float value = 1;
  for (const double limit : {-1.0, kNaN}) {
    EXPECT_THROW(clamp_gradient(ScalarType::Float, &value, 1, limit), c10::Error);
  }
}

}  // namespace
}  // namespace zerosched::kernels
