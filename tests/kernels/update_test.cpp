#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"
#include "kernels/update_cases.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::all_dtypes;
using testing::Dtypes;
using testing::every_rule;
using testing::NamedStep;
using testing::ordinary_scalars;
using testing::Range;
using testing::sizes;

constexpr Rule kRule = Rule::adamw_schedule_free;

double lerp(double a, double b, double w) { return w < 0.5 ? a + w * (b - a) : b - (1 - w) * (b - a); }

/// A step in double, straight from the formulas.
struct Expected {
  double y, z, x, v;

  Expected(const Range& range, int64_t i, const StepScalars& s) {
    const double g = range.g[i] * s.grad_scale;
    v = s.beta2 * range.v[i] + (1 - s.beta2) * g * g;
    const double y_before = lerp(range.x[i], range.z[i], s.y_weight_before);
    const double u = g / (std::sqrt(v / s.bias_correction2) + s.eps) + s.weight_decay * y_before;
    z = range.z[i] - s.lr * u;
    x = lerp(range.x[i], z, s.c);
    y = lerp(x, z, s.y_weight);
  }
};

std::string describe(const Variant& variant, Dtypes dtypes, int64_t numel, bool out_of_cache) {
  return std::string(variant.name) + " " + c10::toString(dtypes.param) + " with " +
         c10::toString(dtypes.grad) + " gradients, " + std::to_string(numel) +
         (out_of_cache ? " out of cache" : " in cache");
}

double relative_to(double difference, double reference) {
  return std::abs(difference) / std::max(1.0, std::abs(reference));
}

TEST(Update, FollowsTheFormulas) {
  for (const Dtypes dtypes : all_dtypes()) {
    const bool wide = dtypes.param == ScalarType::Double;
    const double bar = wide ? 1e-15 : 5e-7;
    // Half a unit in the last of 8 and 11 bits.
    const double y_bar = dtypes.param == ScalarType::BFloat16 ? 1.0 / 256
                         : dtypes.param == ScalarType::Half   ? 1.0 / 2048
                                                              : bar;
    const Range before = Range::random(dtypes, 4097);
    for (const double weight_decay : {0.0, 0.1}) {
      for (const double y_weight : {0.0, 0.1, 0.9, 1.0}) {
        for (const double c : {0.0, 0.01, 0.75, 1.0}) {
          StepScalars s = ordinary_scalars();
          s.weight_decay = weight_decay;
          s.y_weight = y_weight;
          s.y_weight_before = 1 - y_weight;
          s.c = c;
          Range after = before;
          update(kRule, after.raw(), s);
          for (int64_t i = 0; i < before.y.numel(); ++i) {
            const Expected expected(before, i, s);
            ASSERT_LE(relative_to(after.v[i] - expected.v, expected.v), bar) << i;
            ASSERT_LE(relative_to(after.z[i] - expected.z, expected.z), bar) << i;
            ASSERT_LE(relative_to(after.x[i] - expected.x, expected.x), bar) << i;
            ASSERT_LE(relative_to(after.y[i] - expected.y, expected.y), y_bar) << i;
          }
        }
      }
    }
  }
}

TEST(Update, WithMomentumFollowsTheFormulas) {
  const Dtypes dtypes{ScalarType::Double, ScalarType::Double};
  const Range before = Range::random(dtypes, 4097);
  for (const double weight_decay : {0.0, 0.1}) {
    for (const double z_shrink : {1.0, 0.99}) {
      StepScalars s = ordinary_scalars();
      s.beta1 = 0.8, s.bias_correction1 = 0.4, s.weight_decay = weight_decay, s.z_shrink = z_shrink;
      Range after = before;
      update(Rule::adamw_schedule_free_momentum, after.raw(), s);
      for (int64_t i = 0; i < before.y.numel(); ++i) {
        const double g = before.g[i] * s.grad_scale;
        const double m = s.beta1 * before.v[i] + (1 - s.beta1) * g;
        const double v = s.beta2 * before.last[i] + (1 - s.beta2) * g * g;
        const double y_before = lerp(before.x[i], before.z[i], s.y_weight_before);
        const double u =
            m / s.bias_correction1 / (std::sqrt(v / s.bias_correction2) + s.eps) + weight_decay * y_before;
        const double z = z_shrink * before.z[i] - s.lr * u;
        const double x = lerp(before.x[i], z, s.c);
        ASSERT_LE(relative_to(after.v[i] - m, m), 1e-15) << i;
        ASSERT_LE(relative_to(after.last[i] - v, v), 1e-15) << i;
        ASSERT_LE(relative_to(after.z[i] - z, z), 1e-15) << i;
        ASSERT_LE(relative_to(after.x[i] - x, x), 1e-15) << i;
        ASSERT_LE(relative_to(after.y[i] - lerp(x, z, s.y_weight), x), 1e-15) << i;
      }
    }
  }
}

// A running mean of one gradient is that gradient, and multiplying with 1 changes nothing.
TEST(Update, WithoutMomentumTheRuleOfMomentumGivesTheBitsOfTheOther) {
  for (const Dtypes dtypes : all_dtypes()) {
    for (const double weight_decay : {0.0, 0.1}) {
      StepScalars s = ordinary_scalars();
      s.weight_decay = weight_decay;
      Range with = Range::random(dtypes, 1000);
      Range without = with;
      without.v = with.last;
      update(Rule::adamw_schedule_free_momentum, with.raw(), s);
      update(kRule, without.raw(), s);
      EXPECT_TRUE(with.y.same_bits(without.y));
      EXPECT_TRUE(with.z.same_bits(without.z));
      EXPECT_TRUE(with.x.same_bits(without.x));
      EXPECT_TRUE(with.last.same_bits(without.v));
    }
  }
}

TEST(Update, SameBitsOnEveryInstructionSet) {
  const std::vector<const Variant*> variants = runnable_variants();
  for (const NamedStep& step : every_rule()) {
    SCOPED_TRACE(step.name);
    for (const Dtypes dtypes : all_dtypes()) {
      for (const int64_t numel : sizes()) {
        const Range before = Range::random(dtypes, numel);
        Range expected = before;
        kBaseline.update(step.rule, expected.raw(), step.scalars, false);
        for (const Variant* variant : variants) {
          for (const bool out_of_cache : {false, true}) {
            for (const int64_t offset : {0, 1, 4}) {
              Range after(dtypes, numel, offset);
              after.y = before.y, after.g = before.g, after.z = before.z, after.x = before.x,
              after.v = before.v, after.last = before.last;
              variant->update(step.rule, after.raw(), step.scalars, out_of_cache);
              ASSERT_TRUE(after.same_bits(expected))
                  << describe(*variant, dtypes, numel, out_of_cache) << " at offset " << offset;
              ASSERT_TRUE(after.g.same_bits(before.g));
              ASSERT_TRUE(after.canaries_intact()) << describe(*variant, dtypes, numel, out_of_cache);
            }
          }
        }
      }
    }
  }
}

TEST(Update, SameBitsForAnyNumberOfThreads) {
  const int threads_before = at::get_num_threads();
  for (const Dtypes dtypes : all_dtypes()) {
    for (const int64_t numel : {65537, 600'001}) {  // in cache, out of cache
      const Range before = Range::random(dtypes, numel);
      for (const NamedStep& step : every_rule()) {
        Range expected = before;
        kBaseline.update(step.rule, expected.raw(), step.scalars, false);
        for (const int threads : {1, 2, 3}) {
          at::set_num_threads(threads);
          Range after = before;
          update(step.rule, after.raw(), step.scalars);
          EXPECT_TRUE(after.same_bits(expected))
              << step.name << " " << c10::toString(dtypes.param) << ", " << threads << " threads";
          EXPECT_TRUE(after.canaries_intact());
        }
      }
    }
  }
  at::set_num_threads(threads_before);
}

TEST(Update, RulesOfTwoTensorsLeaveTheThirdAlone) {
  for (const NamedStep& step : every_rule()) {
    if (step.rule != Rule::sgd && step.rule != Rule::sgd_schedule_free) continue;
    const Range before = Range::random({ScalarType::Float, ScalarType::Float}, 600'001);
    Range after = before;
    update(step.rule, after.raw(), step.scalars);
    EXPECT_TRUE(after.v.same_bits(before.v)) << step.name;
    UpdateRange without = after.raw();
    without.state[2] = nullptr;
    update(step.rule, without, step.scalars);
  }
}

TEST(Update, DependsOnTheElementAloneNotOnItsPlace) {
  const StepScalars s = ordinary_scalars();
  constexpr int64_t kNumel = 200;
  for (const Dtypes dtypes : all_dtypes()) {
    const Range before = Range::random(dtypes, kNumel);
    Range whole = before;
    update(kRule, whole.raw(), s);
    for (int64_t i = 0; i < kNumel; ++i) {
      Range one(dtypes, 1);
      one.g.set(0, before.g[i]), one.z.set(0, before.z[i]), one.x.set(0, before.x[i]),
          one.v.set(0, before.v[i]);
      update(kRule, one.raw(), s);
      ASSERT_EQ(one.y[0], whole.y[i]);
      ASSERT_EQ(one.z[0], whole.z[i]);
      ASSERT_EQ(one.x[0], whole.x[i]);
      ASSERT_EQ(one.v[0], whole.v[i]);
    }
  }
}

TEST(Update, BothEndsOfBeta1AndTheFirstStepAreExact) {
  for (const Dtypes dtypes : all_dtypes()) {
    if (c10::elementSize(dtypes.param) == 2) continue;  // y is rounded there
    const Range before = Range::random(dtypes, 1000);
    StepScalars s = ordinary_scalars();
    s.y_weight = 1;  // beta1 = 0
    Range after = before;
    update(kRule, after.raw(), s);
    EXPECT_TRUE(after.y.same_bits(after.z));
    s.y_weight = 0;  // beta1 = 1
    after = before;
    update(kRule, after.raw(), s);
    EXPECT_TRUE(after.y.same_bits(after.x));
    s.c = 1;  // the first step: the average is its only point
    after = before;
    update(kRule, after.raw(), s);
    EXPECT_TRUE(after.x.same_bits(after.z));
    s.c = 0;  // lr is 0 so far
    after = before;
    update(kRule, after.raw(), s);
    EXPECT_TRUE(after.x.same_bits(before.x));
  }
}

TEST(Update, ZeroGradientWithoutDecayMovesOnlyTheAverage) {
  for (const Dtypes dtypes : all_dtypes()) {
    Range before = Range::random(dtypes, 333);
    for (int64_t i = 0; i < before.g.numel(); ++i) before.g.set(i, 0);
    before.v.set(0, 0);  // padding: never had a gradient
    before.z.set(0, 0);
    before.x.set(0, 0);
    StepScalars s = ordinary_scalars();
    s.weight_decay = 0;
    Range after = before;
    update(kRule, after.raw(), s);
    EXPECT_TRUE(after.z.same_bits(before.z));
    EXPECT_EQ(after.x[0], 0);
    EXPECT_EQ(after.y[0], 0);
    EXPECT_EQ(after.v[0], 0);
    EXPECT_LT(after.v[1], before.v[1]);
    EXPECT_NE(after.x[1], before.x[1]);
  }
}

TEST(Update, WeightDecayIsTakenAtYBeforeRounding) {
  // x and z that bfloat16 cannot tell from 1.
  const Dtypes dtypes{ScalarType::BFloat16, ScalarType::BFloat16};
  Range range(dtypes, 1);
  range.g.set(0, 0), range.v.set(0, 0), range.x.set(0, 1.001), range.z.set(0, 1.002);
  StepScalars s = ordinary_scalars();
  s.lr = 1, s.weight_decay = 1, s.y_weight_before = 0.25;
  update(kRule, range.raw(), s);
  EXPECT_NEAR(range.z[0], 1.002 - 1.00125, 1e-6);
}

TEST(Update, NonFiniteGradientsReachOnlyTheirElement) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Dtypes dtypes : all_dtypes()) {
    const Range before = Range::random(dtypes, 100);
    const StepScalars s = ordinary_scalars();
    Range expected = before;
    update(kRule, expected.raw(), s);
    for (const double value : {nan, infinity, -infinity}) {
      Range after = before;
      after.g.set(17, value);
      update(kRule, after.raw(), s);
      for (int64_t i = 0; i < 100; ++i) {
        if (i == 17) {
          EXPECT_TRUE(std::isnan(after.y[i]));
          EXPECT_TRUE(std::isnan(after.z[i]));
          EXPECT_TRUE(std::isnan(after.x[i]));
          EXPECT_FALSE(std::isfinite(after.v[i]));
        } else {
          ASSERT_EQ(after.y[i], expected.y[i]);
          ASSERT_EQ(after.v[i], expected.v[i]);
        }
      }
    }
  }
}

TEST(Update, UnsupportedDtypesAreNamed) {
  EXPECT_FALSE(is_supported(ScalarType::Int));
  Range range({ScalarType::Float, ScalarType::Float}, 1);
  UpdateRange raw = range.raw();
  for (const ScalarType grad : {ScalarType::Double, ScalarType::Half}) {
    raw.grad_dtype = grad;
    EXPECT_THROW(update(kRule, raw, ordinary_scalars()), c10::Error);
  }
  raw.param_dtype = ScalarType::Half;
  raw.grad_dtype = ScalarType::BFloat16;
  EXPECT_THROW(update(kRule, raw, ordinary_scalars()), c10::Error);
  raw.param_dtype = raw.grad_dtype = ScalarType::Int;
  EXPECT_THROW(update(kRule, raw, ordinary_scalars()), c10::Error);
}

}  // namespace
}  // namespace zerosched::kernels
