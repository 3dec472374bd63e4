#include "kernels/kernels.h"
#include "kernels/rules/box.h"
#include "kernels/update_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::all_dtypes;
using testing::Array;
using testing::Dtypes;
using testing::every_rule;
using testing::in_box;
using testing::NamedStep;
using testing::Range;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

bool averages(Rule rule) {
  return rule == Rule::adamw_schedule_free || rule == Rule::adamw_schedule_free_momentum ||
         rule == Rule::sgd_schedule_free;
}

std::string describe(const NamedStep& step, Dtypes dtypes) {
  return step.name + " " + c10::toString(dtypes.param) + " with " + c10::toString(dtypes.grad) + " gradients";
}

double in_state(double bound, Dtypes dtypes) {
  return dtypes.param == ScalarType::Double ? bound : static_cast<float>(bound);
}

template <typename Real>
void expect_the_same_without_bounds() {
  using Limits = std::numeric_limits<Real>;
  const StepScalars unbounded;
  EXPECT_FALSE(has_box(unbounded));
  const Box<Real> box(unbounded);
  const NoBox<Real> none(unbounded);
  for (const Real value :
      {Real(0), Real(1.1), Limits::denorm_min(), Limits::max(), Limits::infinity(), Limits::quiet_NaN()}) {
    for (const Real sign : {Real(1), Real(-1)}) {
      const Real in = std::copysign(value, sign), clamped = box.clamp(in), left = none.clamp(in);
      EXPECT_EQ(std::memcmp(&clamped, &in, sizeof(in)), 0) << in;
      EXPECT_EQ(std::memcmp(&left, &in, sizeof(in)), 0) << in;
    }
  }
}

TEST(UpdateBox, InfiniteBoundsLeaveEveryBit) {
  expect_the_same_without_bounds<float>();
  expect_the_same_without_bounds<double>();
  for (const NamedStep& step : every_rule()) {
    if (has_box(step.scalars)) continue;
    for (const Dtypes dtypes : all_dtypes()) {
      const Range before = Range::random(dtypes, 1000);
      Range expected = before;
      update(step.rule, expected.raw(), step.scalars);
      // Beyond all iterates, so that the comparisons are made.
      for (const auto& [low, high] : {std::pair(-1e30, kInfinity), std::pair(-kInfinity, 1e30)}) {
        Range after = before;
        ASSERT_TRUE(has_box(in_box(step.scalars, low, high)));
        update(step.rule, after.raw(), in_box(step.scalars, low, high));
        EXPECT_TRUE(after.same_bits(expected)) << describe(step, dtypes);
      }
    }
  }
}

// The iterate alone is clamped, and the average is of what was clamped.
TEST(UpdateBox, TheIterateIsThatOfTheUnboundedStepClamped) {
  for (const NamedStep& step : every_rule()) {
    if (has_box(step.scalars)) continue;
    for (const Dtypes dtypes : all_dtypes()) {
      const Range before = Range::random(dtypes, 1000);
      Range unbounded = before;
      update(step.rule, unbounded.raw(), step.scalars);
      for (const auto& [low, high] : {std::pair(-0.8, 0.3), std::pair(0.1, kInfinity),
               std::pair(-kInfinity, -0.1), std::pair(0.2, 0.2)}) {
        Range after = before;
        update(step.rule, after.raw(), in_box(step.scalars, low, high));
        int64_t moved = 0;
        for (int64_t i = 0; i < before.z.numel(); ++i) {
          const double expected =
              std::min(std::max(unbounded.z[i], in_state(low, dtypes)), in_state(high, dtypes));
          ASSERT_EQ(after.z[i], expected) << describe(step, dtypes) << " " << i;
          moved += expected == unbounded.z[i] ? 0 : 1;
          if (averages(step.rule)) {
            const double x = before.x[i] + step.scalars.c * (expected - before.x[i]);
            ASSERT_NEAR(after.x[i], x, dtypes.param == ScalarType::Double ? 1e-15 : 5e-7);
          } else {
            ASSERT_EQ(after.x[i], unbounded.x[i]) << "m is not clamped";
          }
        }
        EXPECT_GT(moved, 100);
        EXPECT_TRUE(after.v.same_bits(unbounded.v)) << describe(step, dtypes);
      }
    }
  }
}

TEST(UpdateBox, WhatIsInTheBoxStaysInIt) {
  for (const NamedStep& step : every_rule()) {
    if (!has_box(step.scalars)) continue;
    for (const Dtypes dtypes : all_dtypes()) {
      Range range = Range::random(dtypes, 1000);
      const double low = in_state(step.scalars.clamp_low, dtypes),
                   high = in_state(step.scalars.clamp_high, dtypes);
      for (int64_t i = 0; i < 1000; ++i) {
        range.z.set(i, std::clamp(range.z[i], low, high));
        if (averages(step.rule)) range.x.set(i, std::clamp(range.x[i], low, high));
      }
      for (int k = 0; k < 20; ++k) update(step.rule, range.raw(), step.scalars);
      const bool rounded = c10::elementSize(dtypes.param) == 2;
      for (int64_t i = 0; i < 1000; ++i) {
        ASSERT_TRUE(low <= range.z[i] && range.z[i] <= high) << describe(step, dtypes);
        if (averages(step.rule)) {
          ASSERT_TRUE(low <= range.x[i] && range.x[i] <= high) << describe(step, dtypes);
        }
        const double slack = rounded ? 1.0 / 256 : 0;
        ASSERT_TRUE(low - slack <= range.y[i] && range.y[i] <= high + slack) << describe(step, dtypes);
      }
    }
  }
}

TEST(UpdateBox, NaNStaysNaN) {
  for (const NamedStep& step : every_rule()) {
    for (const Dtypes dtypes : all_dtypes()) {
      Range range = Range::random(dtypes, 100);
      range.g.set(17, kNaN);
      range.z.set(40, kNaN);
      update(step.rule, range.raw(), step.scalars);
      for (const int64_t i : {17, 40}) {
        EXPECT_TRUE(std::isnan(range.z[i])) << describe(step, dtypes);
        EXPECT_TRUE(std::isnan(range.y[i])) << describe(step, dtypes);
      }
    }
  }
}

}  // namespace
}  // namespace zerosched::kernels
