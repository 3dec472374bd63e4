#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"
#include "kernels/ranges.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::Array;
using testing::fill_normal;
using testing::sizes;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Types {
  ScalarType to, from;
};

const std::vector<Types>& all_types() {
  static const std::vector<Types> values = {{ScalarType::Float, ScalarType::Float},
      {ScalarType::Double, ScalarType::Double}, {ScalarType::BFloat16, ScalarType::BFloat16},
      {ScalarType::Half, ScalarType::Half}, {ScalarType::Float, ScalarType::BFloat16},
      {ScalarType::Float, ScalarType::Half}, {ScalarType::BFloat16, ScalarType::Float},
      {ScalarType::Half, ScalarType::Float}};
  return values;
}

std::string describe(Types types) {
  return std::string(c10::toString(types.from)) + " to " + c10::toString(types.to);
}

/// With zeros of both signs, subnormals, and what rounds up to the next power of two.
Array gradients(ScalarType dtype, int64_t numel) {
  std::mt19937 generator(11);
  Array array(dtype, numel);
  fill_normal(array, generator, 1.0);
  const double special[] = {0.0, -0.0, 1e-40, -3e-8, 1.99999, 6e-5, 65500, 1.0 + 1.0 / 256};
  for (int64_t i = 0; i < numel; i += 5) array.set(i, special[static_cast<size_t>(i / 5) % 8]);
  return array;
}

/// The product as it is documented, and rounded by c10's conversions.
void write_expected(Array& to, const Array& from, double weight) {
  for (int64_t i = 0; i < to.numel(); ++i) {
    if (to.dtype() == ScalarType::Double) {
      to.set(i, from[i] * weight);
    } else {
      to.set(i, static_cast<float>(from[i]) * static_cast<float>(weight));
    }
  }
}

TEST(CopyGradient, Weight1GivesTheBitsOfATensorsCopy) {
  for (const Types types : all_types()) {
    for (const int64_t numel : {int64_t{1}, int64_t{1000}, int64_t{2'500'001}}) {
      Array from = gradients(types.from, numel), to(types.to, numel), expected(types.to, numel);
      at::from_blob(expected.data(), {numel}, types.to)
          .copy_(at::from_blob(from.data(), {numel}, types.from));
      EXPECT_TRUE(copy_gradient(types.to, to.data(), types.from, from.data(), numel, 1)) << describe(types);
      EXPECT_TRUE(to.same_bits(expected)) << describe(types) << " " << numel;
    }
  }
}

TEST(CopyGradient, EqualTypesKeepTheBitsOfNaN) {
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const int64_t numel : {100, 2'500'001}) {
      Array from(dtype, numel), to(dtype, numel);
      std::memset(from.data(), 0xff, from.byte_count());  // none that a conversion gives
      EXPECT_FALSE(copy_gradient(dtype, to.data(), dtype, from.data(), numel, 1));
      EXPECT_TRUE(to.same_bits(from)) << c10::toString(dtype);
    }
  }
}

TEST(CopyGradient, OtherWeightsAreRoundedOnce) {
  for (const Types types : all_types()) {
    const Array from = gradients(types.from, 10'001);
    for (const double weight : {0.0, -1.0, 0.5, 1.0 / 3, 0.1, 7.0, -1e-3}) {
      Array to(types.to, from.numel()), expected(types.to, from.numel());
      write_expected(expected, from, weight);
      copy_gradient(types.to, to.data(), types.from, from.data(), from.numel(), weight);
      EXPECT_TRUE(to.same_bits(expected)) << describe(types) << " * " << weight;
    }
  }
}

TEST(CopyGradient, SameBitsOnEveryInstructionSet) {
  for (const Types types : all_types()) {
    for (const int64_t numel : sizes()) {
      const Array from = gradients(types.from, numel);
      for (const double weight : {1.0, 0.3}) {
        Array expected(types.to, numel);
        kBaseline.copy_gradient(types.to, expected.data(), types.from, from.data(), numel, weight, false);
        for (const Variant* variant : runnable_variants()) {
          for (const bool out_of_cache : {false, true}) {
            for (const int64_t offset : {0, 1, 8}) {
              Array in(types.from, numel, offset == 0 ? 0 : offset + 2), to(types.to, numel, offset);
              in = from;
              const bool finite = variant->copy_gradient(
                  types.to, to.data(), types.from, in.data(), numel, weight, out_of_cache);
              ASSERT_TRUE(finite) << variant->name << " " << describe(types) << " " << numel;
              ASSERT_TRUE(to.same_bits(expected)) << variant->name << " " << describe(types) << " " << numel;
              ASSERT_TRUE(to.canaries_intact());
              ASSERT_TRUE(in.same_bits(from));
            }
          }
        }
      }
    }
  }
}

TEST(CopyGradient, SaysWhetherAllThatWasWrittenIsFinite) {
  for (const Types types : all_types()) {
    for (const int64_t numel : sizes()) {
      if (numel == 0) continue;
      for (const Variant* variant : runnable_variants()) {
        for (const bool out_of_cache : {false, true}) {
          for (const int64_t bad : {int64_t{0}, numel / 2, numel - 1}) {
            for (const double value : {kInfinity, -kInfinity, kNaN}) {
              for (const double weight : {1.0, 0.3}) {
                Array from = gradients(types.from, numel), to(types.to, numel);
                from.set(bad, value);
                ASSERT_FALSE(variant->copy_gradient(
                    types.to, to.data(), types.from, from.data(), numel, weight, out_of_cache))
                    << variant->name << " " << describe(types) << " " << numel << " " << bad;
                ASSERT_EQ(std::isnan(to[bad]), std::isnan(value));
              }
            }
          }
        }
      }
    }
  }
}

TEST(CopyGradient, WhatOverflowsIsNotFinite) {
  Array from(ScalarType::Float, 100), half(ScalarType::Half, 100);
  for (int64_t i = 0; i < 100; ++i) from.set(i, 1);
  from.set(50, 65519);  // rounds to the largest, 65504
  EXPECT_TRUE(copy_gradient(ScalarType::Half, half.data(), ScalarType::Float, from.data(), 100, 1));
  EXPECT_FALSE(copy_gradient(ScalarType::Half, half.data(), ScalarType::Float, from.data(), 100, 2));
  from.set(50, 65520);
  EXPECT_FALSE(copy_gradient(ScalarType::Half, half.data(), ScalarType::Float, from.data(), 100, 1));
}

TEST(CopyGradient, SameForAnyNumberOfThreads) {
  const int threads_before = at::get_num_threads();
  for (const Types types : all_types()) {
    Array from = gradients(types.from, 2'500'001), expected(types.to, from.numel());
    write_expected(expected, from, 0.3);
    for (const int threads : {1, 2, 3}) {
      at::set_num_threads(threads);
      Array to(types.to, from.numel());
      EXPECT_TRUE(copy_gradient(types.to, to.data(), types.from, from.data(), from.numel(), 0.3));
      EXPECT_TRUE(to.same_bits(expected)) << describe(types) << ", " << threads << " threads";
      EXPECT_TRUE(to.canaries_intact());
    }
    from.set(2'400'000, kNaN);
    EXPECT_FALSE(copy_gradient(types.to, expected.data(), types.from, from.data(), from.numel(), 0.3));
  }
  at::set_num_threads(threads_before);
}

TEST(CopyGradient, OtherTypesAreNamed) {
  float memory[4] = {};
  const auto copy = [&](ScalarType to, ScalarType from) {
    copy_gradient(to, memory, from, memory + 2, 1, 1);
  };
  EXPECT_THROW(copy(ScalarType::Half, ScalarType::BFloat16), c10::Error);
  EXPECT_THROW(copy(ScalarType::Double, ScalarType::Float), c10::Error);
  EXPECT_THROW(copy(ScalarType::Int, ScalarType::Int), c10::Error);
}

}  // namespace
}  // namespace zerosched::kernels
