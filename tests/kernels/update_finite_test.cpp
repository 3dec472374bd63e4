// Whether a step left the state finite is seen while it is written.
#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"
#include "kernels/update_cases.h"

#include <ATen/Parallel.h>

#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::all_dtypes;
using testing::Array;
using testing::Dtypes;
using testing::every_rule;
using testing::NamedStep;
using testing::Range;
using testing::sizes;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Array& last_state(Range& range, Rule rule) {
  if (rule == Rule::adamw_schedule_free_momentum) return range.last;
  return rule == Rule::adamw_schedule_free || rule == Rule::adamw ? range.v : range.x;
}

std::string describe(const NamedStep& step, Dtypes dtypes, int64_t numel) {
  return step.name + " " + c10::toString(dtypes.param) + " with " + c10::toString(dtypes.grad) +
         " gradients, " + std::to_string(numel);
}

TEST(UpdateFinite, EveryInstructionSetSeesAnyElementOfTheFirstAndTheLastTensor) {
  for (const NamedStep& step : every_rule()) {
    for (const Dtypes dtypes : all_dtypes()) {
      for (const int64_t numel : sizes()) {
        const Range before = Range::random(dtypes, numel);
        for (const Variant* variant : runnable_variants()) {
          for (const bool out_of_cache : {false, true}) {
            SCOPED_TRACE(
                describe(step, dtypes, numel) + variant->name + (out_of_cache ? " out of cache" : ""));
            Range range = before;
            ASSERT_TRUE(variant->update(step.rule, range.raw(), step.scalars, out_of_cache));
            for (const int64_t bad : {int64_t{0}, numel / 2, numel - 1}) {
              if (numel == 0) continue;
              range = before;
              range.g.set(bad, kNaN);
              ASSERT_FALSE(variant->update(step.rule, range.raw(), step.scalars, out_of_cache));
              for (const double value : {kNaN, kInfinity}) {
                range = before;
                last_state(range, step.rule).set(bad, value);
                ASSERT_FALSE(variant->update(step.rule, range.raw(), step.scalars, out_of_cache));
              }
            }
          }
        }
      }
    }
  }
}

TEST(UpdateFinite, AnInfiniteGradientIsSeen) {
  for (const NamedStep& step : every_rule()) {
    if (step.scalars.clamp_high < kInfinity) continue;  // in the box again
    for (const Dtypes dtypes : all_dtypes()) {
      for (const double value : {kInfinity, -kInfinity}) {
        Range range = Range::random(dtypes, 100);
        range.g.set(63, value);
        EXPECT_FALSE(update(step.rule, range.raw(), step.scalars)) << describe(step, dtypes, 100);
      }
    }
  }
}

TEST(UpdateFinite, ASquareThatOverflowsIsSeen) {
  for (const NamedStep& step : every_rule()) {
    if (step.rule != Rule::adamw && step.rule != Rule::adamw_schedule_free) continue;
    for (const Dtypes dtypes : all_dtypes()) {
      if (dtypes.grad == ScalarType::Half) continue;  // its largest square is far from float32's largest
      Range range = Range::random(dtypes, 100);
      range.g.set(99, dtypes.grad == ScalarType::Double ? 1e200 : 1e25);
      EXPECT_FALSE(update(step.rule, range.raw(), step.scalars)) << describe(step, dtypes, 100);
    }
  }
}

TEST(UpdateFinite, TheLargestNumbersAreFinite) {
  StepScalars still;
  still.bias_correction2 = 1;
  still.beta1 = still.beta2 = 1;
  for (const Dtypes dtypes :
      {Dtypes{ScalarType::Float, ScalarType::Float}, Dtypes{ScalarType::Double, ScalarType::Double}}) {
    const double largest = dtypes.param == ScalarType::Double ? std::numeric_limits<double>::max()
                                                              : std::numeric_limits<float>::max();
    for (const Rule rule : {Rule::adamw_schedule_free, Rule::sgd_schedule_free, Rule::adamw, Rule::sgd}) {
      Range range(dtypes, 1000);
      for (int64_t i = 0; i < 1000; ++i)
        range.g.set(i, 0), range.z.set(i, largest), range.x.set(i, largest), range.v.set(i, largest);
      EXPECT_TRUE(update(rule, range.raw(), still));
      EXPECT_EQ(range.z[999], largest);
    }
  }
}

TEST(UpdateFinite, SeenByAnyThread) {
  const int threads_before = at::get_num_threads();
  constexpr int64_t kNumel = 600'001;
  const Dtypes dtypes{ScalarType::Float, ScalarType::Float};
  const Range before = Range::random(dtypes, kNumel);
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    Range range = before;
    EXPECT_TRUE(update(Rule::adamw, range.raw(), testing::ordinary_scalars()));
    for (const int64_t bad : {int64_t{0}, kNumel / 2, kNumel - 1}) {
      range = before;
      range.g.set(bad, kNaN);
      EXPECT_FALSE(update(Rule::adamw, range.raw(), testing::ordinary_scalars()))
          << threads << " threads, " << bad;
    }
  }
  at::set_num_threads(threads_before);
}

}  // namespace
}  // namespace zerosched::kernels
