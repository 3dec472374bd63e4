// The CUDA kernels' source, run on the CPU by cuda_shim/ under ASan and UBSan, against the CPU's own kernels:
// every bit must be the same. Memory that kernels see is exactly as long as they may touch.
#include "kernels/cuda_cases.h"
#include "kernels/shim_memory.h"
#include "kernels/summation.h"

#include "cuda_runtime.h"

#include <c10/util/Exception.h>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using cuda::GradientNorm;
using cuda::SpanOnDevice;
using testing::all_dtypes;
using testing::all_rules;
using testing::Array;
using testing::Device;
using testing::Dtypes;
using testing::fill_normal;
using testing::Shard;
using testing::span_sizes;
using testing::Variant;

/// A shard in the shim's device memory; gradients at an offset, as those that autograd made may be.
struct OnDevice {
  Device y, g, flags;
  std::vector<Device> state;
  std::vector<SpanOnDevice> spans;
  int64_t numel;

  explicit OnDevice(const Shard& shard, int64_t gradient_offset = 0, int64_t y_offset = 0)
      : y(shard.y, static_cast<size_t>(y_offset) * c10::elementSize(shard.dtypes.param)),
        g(shard.g, static_cast<size_t>(gradient_offset) * c10::elementSize(shard.dtypes.grad)),
        flags(shard.flags),
        numel(shard.numel) {
    for (const Array& tensor : shard.state) state.emplace_back(tensor);
    const auto grad_bytes = static_cast<int64_t>(c10::elementSize(shard.dtypes.grad));
    const auto param_bytes = static_cast<int64_t>(c10::elementSize(shard.dtypes.param));
    for (size_t i = 0; i < shard.sizes.size(); ++i) {
      const char* flag = static_cast<const char*>(flags.data()) + static_cast<int64_t>(i) * grad_bytes;
      spans.push_back({static_cast<const char*>(g.data()) + shard.begins[i] * grad_bytes, shard.begins[i],
          shard.sizes[i], i == 0 ? nullptr : flag,
          static_cast<char*>(y.data()) + shard.begins[i] * param_bytes, static_cast<int64_t>(i)});
    }
  }

  void update(const Variant& variant, const Dtypes& dtypes, const GradientNorm* norm = nullptr,
      int32_t* not_finite = nullptr) const {
    cuda::ShardUpdate shard{
        {}, numel, spans.data(), static_cast<int64_t>(spans.size()), &variant.scalars, norm, not_finite};
    for (int i = 0; i < variant.state_tensors(); ++i) shard.state[i] = state[static_cast<size_t>(i)].data();
    cuda::update(variant.rule, variant.scalars, dtypes.param, dtypes.grad, shard, nullptr);
  }
  double sum_of_squares(ScalarType grad_dtype, double sum) const {
    const auto count = static_cast<int64_t>(spans.size());
    std::vector<double> workspace(static_cast<size_t>(cuda::sum_of_squares_workspace_numel(numel, count)),
        std::numeric_limits<double>::quiet_NaN());
    cuda::sum_of_squares(grad_dtype, spans.data(), count, numel, workspace.data(), &sum, nullptr);
    return sum;
  }
  double sum_of_powers(ScalarType grad_dtype, double p, double sum) const {
    const auto count = static_cast<int64_t>(spans.size());
    std::vector<double> workspace(static_cast<size_t>(cuda::sum_of_squares_workspace_numel(numel, count)),
        std::numeric_limits<double>::quiet_NaN());
    cuda::sum_of_powers(grad_dtype, p, spans.data(), count, numel, workspace.data(), &sum, nullptr);
    return sum;
  }
  double inner_product(ScalarType grad_dtype, double weight, double sum) const {
    const auto count = static_cast<int64_t>(spans.size());
    std::vector<double> workspace(static_cast<size_t>(cuda::sum_of_squares_workspace_numel(numel, count)),
        std::numeric_limits<double>::quiet_NaN());
    cuda::inner_product(grad_dtype, weight, state[0].data(), state[1].data(), spans.data(), count, numel,
        workspace.data(), &sum, nullptr);
    return sum;
  }
  double max_abs(ScalarType grad_dtype) const {
    const auto count = static_cast<int64_t>(spans.size());
    std::vector<double> workspace(static_cast<size_t>(cuda::sum_of_squares_workspace_numel(numel, count)),
        std::numeric_limits<double>::quiet_NaN());
    double largest = 0;
    cuda::max_abs(grad_dtype, spans.data(), count, numel, workspace.data(), &largest, nullptr);
    return largest;
  }
  void clamp(ScalarType grad_dtype, double limit) const {
    cuda::clamp_gradient(grad_dtype, spans.data(), static_cast<int64_t>(spans.size()), numel, limit, nullptr);
  }
  bool same_bits(const Shard& shard) const {
    for (size_t i = 0; i < state.size(); ++i) {
      if (!state[i].same_bits(shard.state[i])) return false;
    }
    return y.same_bits(shard.y) && g.same_bits(shard.g);
  }
};

std::string describe(const Variant& variant, const Dtypes& dtypes) {
  return std::string(variant.name) + ", " + c10::toString(dtypes.param) + " with " +
         c10::toString(dtypes.grad) + " gradients";
}

class CudaShim : public ::testing::Test {
 protected:
  void SetUp() override {
    cuda_shim::set_order(1);
    cuda_shim::set_multiprocessors(1);
  }
};

TEST_F(CudaShim, UpdateGivesTheBitsOfTheCpu) {
  uint32_t seed = 1;
  for (const Dtypes& dtypes : all_dtypes()) {
    for (const Variant& variant : all_rules()) {
      for (const bool some_unused : {false, true}) {
        for (const int64_t offset : {0, 1}) {
          cuda_shim::set_order(seed % 4);  // also in their own order
          Shard expected(dtypes, span_sizes(), some_unused, ++seed);
          const OnDevice shard(expected, offset);
          shard.update(variant, dtypes);
          expected.update_on_cpu(variant.rule, variant.scalars);
          ASSERT_TRUE(shard.same_bits(expected)) << describe(variant, dtypes) << ", offset " << offset;
        }
      }
    }
  }
}

// As many elements as the threads of a block access at once, where there are multiprocessors enough for that.
TEST_F(CudaShim, SmallTilesAndAYThatIsNotAligned) {
  cuda_shim::set_multiprocessors(1000);
  for (const Dtypes& dtypes : all_dtypes()) {
    const Variant variant = all_rules()[1];
    for (const int64_t y_offset : {0, 1}) {
      Shard expected(dtypes, span_sizes(), true, 5);
      const OnDevice shard(expected, 0, y_offset);
      shard.update(variant, dtypes);
      expected.update_on_cpu(variant.rule, variant.scalars);
      EXPECT_TRUE(shard.same_bits(expected)) << describe(variant, dtypes) << ", y offset " << y_offset;
      shard.clamp(dtypes.grad, 0.1);
      expected.clamp_on_cpu(0.1);
      EXPECT_TRUE(shard.same_bits(expected)) << describe(variant, dtypes);
    }
  }
}

// Some spans of a longer table, as those of a few buckets: tiles count from the first of them.
TEST_F(CudaShim, APartOfATable) {
  for (const Dtypes& dtypes : all_dtypes()) {
    const Variant variant = all_rules()[1];
    Shard expected(dtypes, span_sizes(), false, 5);
    OnDevice shard(expected);
    const size_t first = 15, count = 6;
    const auto end = static_cast<std::ptrdiff_t>(first + count);
    shard.numel =
        expected.begins[first + count - 1] + expected.sizes[first + count - 1] - expected.begins[first];
    shard.spans.assign(shard.spans.begin() + static_cast<std::ptrdiff_t>(first), shard.spans.begin() + end);
    for (size_t i = 0; i < expected.sizes.size(); ++i) {
      if (i < first || i >= first + count) expected.used[i] = false;
    }
    EXPECT_EQ(shard.sum_of_squares(dtypes.grad, 0.5), expected.sum_of_squares_on_cpu(0.5));
    shard.clamp(dtypes.grad, 0.1);
    expected.clamp_on_cpu(0.1);
    shard.update(variant, dtypes);
    expected.update_on_cpu(variant.rule, variant.scalars);
    EXPECT_TRUE(shard.same_bits(expected)) << describe(variant, dtypes);
  }
}

TEST_F(CudaShim, UpdateIsClippedByWhatIsInDeviceMemory) {
  for (const Dtypes& dtypes : all_dtypes()) {
    const Variant variant = all_rules()[1];
    Shard expected(dtypes, {5000, 3}, false, 7);
    const OnDevice shard(expected);
    const GradientNorm norm{10, 0.3, 0};
    shard.update(variant, dtypes, &norm);
    StepScalars clipped = variant.scalars;
    clipped.grad_scale *= 0.3;
    expected.update_on_cpu(variant.rule, clipped);
    EXPECT_TRUE(shard.same_bits(expected)) << describe(variant, dtypes);
  }
}

TEST_F(CudaShim, FoundInfChangesNothing) {
  for (const Dtypes& dtypes : all_dtypes()) {
    for (const Variant& variant : all_rules()) {
      const Shard before(dtypes, {5000, 3}, false, 7);
      const OnDevice shard(before);
      const GradientNorm norm{std::numeric_limits<double>::infinity(), 1, 1};
      shard.update(variant, dtypes, &norm);
      EXPECT_TRUE(shard.same_bits(before)) << describe(variant, dtypes);
    }
  }
}

// In a pack, behind the last pack, and among gradients that are not aligned.
TEST_F(CudaShim, UpdateSeesWhatIsNotFinite) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const Dtypes& dtypes : all_dtypes()) {
    for (const Variant& variant : all_rules()) {
      const Shard finite(dtypes, {5003, 3}, false, 7);
      for (const int64_t offset : {0, 1}) {
        int32_t flag = 0;
        OnDevice(finite, offset).update(variant, dtypes, nullptr, &flag);
        EXPECT_EQ(flag, 0) << describe(variant, dtypes);
        for (const int64_t bad : {int64_t{0}, int64_t{2047}, int64_t{5002}, finite.begins[1] + 2}) {
          Shard shard = finite;
          shard.g.set(bad, std::numeric_limits<double>::quiet_NaN());
          flag = 0;
          OnDevice(shard, offset).update(variant, dtypes, nullptr, &flag);
          EXPECT_EQ(flag, 1) << describe(variant, dtypes) << " " << bad;
          shard = finite;
          shard.state[static_cast<size_t>(variant.state_tensors() - 1)].set(bad, infinity);
          flag = 0;
          OnDevice(shard, offset).update(variant, dtypes, nullptr, &flag);
          EXPECT_EQ(flag, 1) << describe(variant, dtypes) << " " << bad;
          const GradientNorm found{infinity, 1, 1};
          flag = 0;
          OnDevice(shard, offset).update(variant, dtypes, &found, &flag);
          EXPECT_EQ(flag, 0) << "a step that is left out was looked at";
        }
      }
    }
  }
}

TEST_F(CudaShim, InterpolateGivesTheBitsOfTheCpu) {
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const int64_t numel : span_sizes()) {
      std::mt19937 generator(3);
      Array x(state_dtype(dtype), numel), z(state_dtype(dtype), numel), expected(dtype, numel);
      fill_normal(x, generator, 1.0);
      fill_normal(z, generator, 1.0);
      for (const double weight : {0.0, 0.1, 0.9, 1.0}) {
        interpolate(dtype, expected.data(), x.data(), z.data(), weight, numel);
        const Device out(Array(dtype, numel)), from(x), to(z);
        cuda::interpolate(dtype, out.data(), from.data(), to.data(), weight, numel, nullptr);
        ASSERT_TRUE(out.same_bits(expected)) << c10::toString(dtype) << " " << numel;
      }
    }
  }
}

TEST_F(CudaShim, SumOfSquaresGivesTheBitsOfTheCpu) {
  uint32_t seed = 1;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    // More tiles than lanes only once: that takes a while.
    const int64_t tiles = dtype == ScalarType::BFloat16 ? 34 : 3;
    for (const std::vector<int64_t>& sizes :
        {span_sizes(), std::vector<int64_t>{tiles * kSumTileNumel + 1234, 5}}) {
      for (const int64_t offset : {0, 1}) {
        for (const bool some_unused : {false, true}) {
          cuda_shim::set_order(++seed);
          Shard expected({dtype, dtype}, sizes, some_unused, seed);
          const OnDevice shard(expected, offset);
          ASSERT_EQ(shard.sum_of_squares(dtype, 0.5), expected.sum_of_squares_on_cpu(0.5))
              << c10::toString(dtype);
        }
      }
    }
  }
}

TEST_F(CudaShim, SquaresByParameterAreThoseOfTheCpu) {
  std::vector<int64_t> many(1100, 3);  // more than a block takes
  many[1050] = 3 * kSumTileNumel + 5;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const std::vector<int64_t>& sizes : {span_sizes(), many}) {
      if (sizes == many && dtype != ScalarType::Float) continue;  // slow, and the same code
      Shard expected({dtype, dtype}, sizes, true, 3);
      const OnDevice shard(expected);
      const auto count = static_cast<int64_t>(sizes.size());
      std::vector<double> squares(sizes.size(), 0.25);
      std::vector<double> workspace(
          static_cast<size_t>(cuda::sum_of_squares_workspace_numel(shard.numel, count)),
          std::numeric_limits<double>::quiet_NaN());
      cuda::squares_by_parameter(
          dtype, shard.spans.data(), count, shard.numel, workspace.data(), squares.data(), nullptr);
      for (size_t i = 0; i < sizes.size(); ++i) {
        const double own =
            expected.used[i] ? sum_of_squares(dtype, Shard::at(expected.g, expected.begins[i]), sizes[i]) : 0;
        ASSERT_EQ(squares[i], 0.25 + own) << c10::toString(dtype) << " " << i;
      }
    }
  }
}

TEST_F(CudaShim, SumOfSquaresOfThousandsOfSpans) {
  std::vector<int64_t> sizes(1100, 3);  // more than the second kernel takes at a time
  sizes[1050] = 40000;
  Shard expected({ScalarType::BFloat16, ScalarType::BFloat16}, sizes, true, 3);
  const OnDevice shard(expected);
  EXPECT_EQ(shard.sum_of_squares(ScalarType::BFloat16, 0), expected.sum_of_squares_on_cpu(0));
}

TEST_F(CudaShim, SumsOfPowersAreThoseOfTheCpu) {
  uint32_t seed = 1;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const std::vector<int64_t>& sizes :
        {span_sizes(), std::vector<int64_t>{3 * kSumTileNumel + 1234, 5}}) {
      for (const int64_t offset : {0, 1}) {
        cuda_shim::set_order(++seed);
        Shard expected({dtype, dtype}, sizes, true, seed);
        const OnDevice shard(expected, offset);
        EXPECT_EQ(shard.sum_of_powers(dtype, 1, 0.5), expected.sum_of_powers_on_cpu(0.5, 1));
        EXPECT_EQ(shard.sum_of_powers(dtype, 2, 0.5), expected.sum_of_squares_on_cpu(0.5));
        const double cubes = expected.sum_of_powers_on_cpu(0.5, 3.5);
        EXPECT_NEAR(shard.sum_of_powers(dtype, 3.5, 0.5), cubes, 1e-12 * cubes);
        EXPECT_EQ(shard.max_abs(dtype), expected.max_abs_on_cpu());
        EXPECT_EQ(shard.inner_product(dtype, 0.3, 0.5), expected.inner_product_on_cpu(0.5, 0.3));
      }
    }
    Shard bad({dtype, dtype}, {20000, 100}, false, 5);
    bad.g.set(19'999, -std::numeric_limits<double>::infinity());
    EXPECT_EQ(OnDevice(bad).max_abs(dtype), std::numeric_limits<double>::infinity());
    bad.g.set(3, -std::numeric_limits<double>::quiet_NaN());
    EXPECT_TRUE(std::isnan(OnDevice(bad).max_abs(dtype)));
    EXPECT_TRUE(std::isnan(OnDevice(bad).sum_of_powers(dtype, 1, 0)));
  }
}

TEST_F(CudaShim, ClampGivesTheBitsOfTheCpu) {
  uint32_t seed = 1;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const int64_t offset : {0, 1}) {
      for (const double limit : {0.0, 0.1, 1.0 / 3}) {
        Shard expected({dtype, dtype}, span_sizes(), true, ++seed);
        expected.g.set(expected.begins[20], std::numeric_limits<double>::quiet_NaN());
        expected.g.set(expected.begins[20] + 9, -std::numeric_limits<double>::infinity());
        const OnDevice shard(expected, offset);
        shard.clamp(dtype, limit);
        expected.clamp_on_cpu(limit);
        EXPECT_TRUE(shard.same_bits(expected)) << c10::toString(dtype) << " " << limit;
      }
    }
  }
}

TEST_F(CudaShim, NonFiniteElementsShowInTheNorm) {
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const double bad :
        {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
      Shard shard({dtype, dtype}, {20000, 100}, false, 5);
      shard.g.set(19'999, bad);
      const double sum = OnDevice(shard).sum_of_squares(dtype, 0);
      EXPECT_FALSE(std::isfinite(sum));
      StepScalars scalars;
      GradientNorm norm{};
      cuda::gradient_norm(&sum, &scalars, std::nullopt, true, state_dtype(dtype), &norm, nullptr);
      EXPECT_EQ(norm.found_inf, 1);
      cuda::gradient_norm(&sum, &scalars, std::nullopt, false, state_dtype(dtype), &norm, nullptr);
      EXPECT_EQ(norm.found_inf, 0) << "without loss scaling they are used like any gradient";
    }
  }
}

// As Engine::clip_factor.
TEST_F(CudaShim, NormAndClipFactor) {
  StepScalars scalars;
  scalars.grad_scale = 0.125;
  const double sum = 1234.5;
  const double expected = std::sqrt(sum) * 0.125;
  GradientNorm norm{};
  cuda::gradient_norm(&sum, &scalars, 1.0, true, ScalarType::Float, &norm, nullptr);
  EXPECT_EQ(norm.norm, expected);
  EXPECT_EQ(norm.clip_factor, 1.0 / (expected + 1e-6));
  EXPECT_EQ(norm.found_inf, 0);
  cuda::gradient_norm(&sum, &scalars, 100.0, true, ScalarType::Float, &norm, nullptr);
  EXPECT_EQ(norm.clip_factor, 1);
  cuda::gradient_norm(&sum, &scalars, std::nullopt, true, ScalarType::Float, &norm, nullptr);
  EXPECT_EQ(norm.clip_factor, 1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  cuda::gradient_norm(&nan, &scalars, 1.0, false, ScalarType::Float, &norm, nullptr);
  EXPECT_TRUE(std::isnan(norm.clip_factor));
}

// What is finite in double, but not in the float32 that the update multiplies with.
TEST_F(CudaShim, NormsAreJudgedInTheTypeOfTheState) {
  const auto found_inf = [](double sum, double grad_scale, ScalarType dtype) {
    StepScalars scalars;
    scalars.grad_scale = grad_scale;
    GradientNorm norm{};
    cuda::gradient_norm(&sum, &scalars, std::nullopt, true, dtype, &norm, nullptr);
    return norm.found_inf;
  };
  for (const auto& [sum, grad_scale] :
      {std::pair(1e80, 1.0), std::pair(1e-80, 1e39), std::pair(1e40, 1e30)}) {
    EXPECT_EQ(found_inf(sum, grad_scale, ScalarType::Float), 1) << sum << " " << grad_scale;
    EXPECT_EQ(found_inf(sum, grad_scale, ScalarType::Double), 0) << sum << " " << grad_scale;
  }
  for (const ScalarType dtype : {ScalarType::Float, ScalarType::Double}) {
    EXPECT_EQ(found_inf(1e70, 1e2, dtype), 0);
    EXPECT_EQ(found_inf(1, std::numeric_limits<double>::infinity(), dtype), 1);
  }
}

TEST_F(CudaShim, WrongCallsAreNamed) {
  const Dtypes floats{ScalarType::Float, ScalarType::Float};
  const Variant variant = all_rules()[0];
  const OnDevice shard(Shard(floats, {8}, false, 1));
  EXPECT_THROW(shard.update(variant, {ScalarType::Float, ScalarType::Half}), c10::Error);
  EXPECT_THROW(shard.update(variant, {ScalarType::Int, ScalarType::Int}), c10::Error);
  cuda::ShardUpdate skewed{
      {static_cast<char*>(shard.state[0].data()) + 4}, 4, shard.spans.data(), 1, &variant.scalars, nullptr};
  try {
    cuda::update(variant.rule, variant.scalars, ScalarType::Float, ScalarType::Float, skewed, nullptr);
    FAIL() << "a state that is not aligned was taken";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("aligned to 16 bytes"), std::string::npos);
  }
}

}  // namespace
}  // namespace zerosched::kernels
