#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"
#include "kernels/ranges.h"
#include "kernels/summation.h"

#include <ATen/Parallel.h>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::Array;
using testing::fill_normal;
using testing::kDtypes;
using testing::sizes;

struct Vectors {
  Array g, z, x;

  Vectors(ScalarType dtype, int64_t numel)
      : g(dtype, numel), z(state_dtype(dtype), numel), x(state_dtype(dtype), numel) {
    std::mt19937 generator(7);
    for (Array* array : {&g, &z, &x}) fill_normal(*array, generator, 1.0);
  }

  double product(double weight = 1) {
    return inner_product(g.dtype(), g.data(), z.data(), x.data(), g.numel(), weight);
  }

  /// The sum of what `of` makes of each element's product, in long double.
  template <typename Function>
  double plain_sum(const Function& of) const {
    long double sum = 0;
    for (int64_t i = 0; i < g.numel(); ++i) {
      sum += of(
          static_cast<long double>(g[i]) * (static_cast<long double>(z[i]) - static_cast<long double>(x[i])));
    }
    return static_cast<double>(sum);
  }
};

TEST(InnerProduct, IsTheSum) {
  std::vector<int64_t> numels = sizes();
  numels.insert(numels.end(), {kSumTileNumel - 1, kSumTileNumel, 3 * kSumTileNumel + 5});
  for (const ScalarType dtype : kDtypes) {
    for (const int64_t numel : numels) {
      Vectors vectors(dtype, numel);
      const double expected = vectors.plain_sum([](long double value) { return value; });
      const double magnitude = vectors.plain_sum([](long double value) { return std::abs(value); });
      ASSERT_NEAR(vectors.product(), expected, 1e-14 * magnitude) << c10::toString(dtype) << " " << numel;
      ASSERT_NEAR(vectors.product(-0.3), -0.3 * expected, 1e-14 * magnitude);
    }
  }
}

TEST(InnerProduct, SameBitsForAnyNumberOfThreadsAndInstructionSet) {
  const int threads_before = at::get_num_threads();
  for (const ScalarType dtype : kDtypes) {
    Vectors vectors(dtype, 300'001);
    at::set_num_threads(1);
    const double expected = vectors.product(0.3);
    for (const int threads : {2, 3}) {
      at::set_num_threads(threads);
      EXPECT_EQ(vectors.product(0.3), expected) << threads << " threads";
    }
    for (const int64_t numel : {int64_t{1}, int64_t{31}, int64_t{513}, kSumTileNumel - 1, kSumTileNumel}) {
      const auto product_by = [&](const Variant& variant) {
        return variant.inner_product_of_tile(
            dtype, vectors.g.data(), vectors.z.data(), vectors.x.data(), numel);
      };
      for (const Variant* variant : runnable_variants()) {
        ASSERT_EQ(product_by(*variant), product_by(kBaseline)) << variant->name << " " << numel;
      }
    }
  }
  at::set_num_threads(threads_before);
}

TEST(InnerProduct, OfWhereXIsZIsZero) {
  for (const ScalarType dtype : kDtypes) {
    Vectors vectors(dtype, 50'000);
    vectors.x = vectors.z;
    EXPECT_EQ(vectors.product(), 0);
  }
}

TEST(InnerProduct, NonFiniteElementsShow) {
  for (const ScalarType dtype : kDtypes) {
    Vectors vectors(dtype, 50'000);
    vectors.g.set(40'000, std::numeric_limits<double>::infinity());
    EXPECT_FALSE(std::isfinite(vectors.product()));
  }
}

}  // namespace
}  // namespace zerosched::kernels
