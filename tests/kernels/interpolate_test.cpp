#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "kernels/ranges.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::Array;
using testing::fill_normal;
using testing::sizes;

const std::vector<double> kWeights = {0.0, 1e-3, 0.1, 0.3, 0.4999, 0.5, 0.7, 0.9, 0.999, 1.0};

struct Points {
  Array x, z;

  Points(ScalarType dtype, int64_t numel) : x(dtype, numel), z(dtype, numel) {
    std::mt19937 generator(3);
    fill_normal(x, generator, 1.0);
    fill_normal(z, generator, 1.0);
    for (int64_t i = 0; i < numel; i += 11) x.set(i, i % 2 == 0 ? -0.0 : 0.0);
  }
};

TEST(Interpolate, EndsAreExact) {
  for (const ScalarType dtype : {ScalarType::Float, ScalarType::Double}) {
    const Points p(dtype, 10'001);
    Array out(dtype, p.x.numel());
    interpolate(dtype, out.data(), p.x.data(), p.z.data(), 0.0, out.numel());
    EXPECT_TRUE(out.same_bits(p.x));
    interpolate(dtype, out.data(), p.x.data(), p.z.data(), 1.0, out.numel());
    EXPECT_TRUE(out.same_bits(p.z));
    interpolate(dtype, out.data(), p.z.data(), p.x.data(), 1.0, out.numel());
    EXPECT_TRUE(out.same_bits(p.x));
  }
}

TEST(Interpolate, EqualPointsStayWhatTheyAre) {
  for (const ScalarType dtype : {ScalarType::Float, ScalarType::Double}) {
    const Points p(dtype, 10'001);
    Array out(dtype, p.x.numel());
    for (const double weight : kWeights) {
      interpolate(dtype, out.data(), p.x.data(), p.x.data(), weight, out.numel());
      EXPECT_TRUE(out.same_bits(p.x)) << weight;
    }
  }
}

template <typename Real>
void expect_the_same_without_selects() {
  using Limits = std::numeric_limits<Real>;
  const std::vector<Real> values = {0, 1, Real(1.1), Real(3e-5), Limits::min(), Limits::denorm_min(),
      Limits::max(), Limits::infinity(), Limits::quiet_NaN()};
  for (const double weight : {1e-320, 1e-50, 1e-3, 0.1, 0.4999999}) {
    ASSERT_TRUE(LerpNearA<Real>::covers(weight));
    for (const Real a : values) {
      for (const Real b : values) {
        for (const auto& [from, to] :
            {std::pair(a, b), std::pair(-a, b), std::pair(a, -b), std::pair(-a, -b)}) {
          const Real expected = interpolate_element(from, to, Lerp<Real>(weight));
          const Real got = interpolate_element(from, to, LerpNearA<Real>(weight));
          EXPECT_EQ(std::memcmp(&got, &expected, sizeof(got)), 0)
              << from << " to " << to << " by " << weight << ": " << got << " instead of " << expected;
        }
      }
    }
  }
  for (const double weight : {0.0, 0.5, 0.9, 1.0}) EXPECT_FALSE(LerpNearA<Real>::covers(weight));
}

TEST(Interpolate, WeightsNearAGiveTheSameBitsWithoutSelects) {
  expect_the_same_without_selects<float>();
  expect_the_same_without_selects<double>();
}

TEST(Interpolate, FarEndHasNoInfluenceAtTheNear) {
  Array x(ScalarType::Float, 2), z(ScalarType::Float, 2), out(ScalarType::Float, 2);
  x.set(0, 1.5), x.set(1, -0.0);
  z.set(0, std::numeric_limits<double>::infinity()), z.set(1, std::numeric_limits<double>::quiet_NaN());
  interpolate(ScalarType::Float, out.data(), x.data(), z.data(), 0.0, 2);
  EXPECT_TRUE(out.same_bits(x));
  interpolate(ScalarType::Float, out.data(), z.data(), x.data(), 1.0, 2);
  EXPECT_TRUE(out.same_bits(x));
}

TEST(Interpolate, IsWithinARoundingOfTheMean) {
  const Points p(ScalarType::Float, 10'001);
  Array out(ScalarType::Float, p.x.numel());
  for (const double weight : kWeights) {
    interpolate(ScalarType::Float, out.data(), p.x.data(), p.z.data(), weight, out.numel());
    for (int64_t i = 0; i < out.numel(); ++i) {
      const double expected = (1 - weight) * p.x[i] + weight * p.z[i];
      const double largest = std::max({1e-3, std::abs(p.x[i]), std::abs(p.z[i])});
      ASSERT_NEAR(out[i], expected, 2e-7 * largest);
    }
  }
}

TEST(Interpolate, SameBitsOnEveryInstructionSet) {
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const int64_t numel : sizes()) {
      const Points p(state_dtype(dtype), numel);
      for (const double weight : kWeights) {
        Array expected(dtype, numel);
        kBaseline.interpolate(dtype, expected.data(), p.x.data(), p.z.data(), weight, numel);
        for (const Variant* variant : runnable_variants()) {
          for (const int64_t offset : {0, 1, 3}) {
            Array out(dtype, numel, offset);
            variant->interpolate(dtype, out.data(), p.x.data(), p.z.data(), weight, numel);
            ASSERT_TRUE(out.same_bits(expected))
                << variant->name << " " << c10::toString(dtype) << " " << numel;
            ASSERT_TRUE(out.canaries_intact());
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace zerosched::kernels
