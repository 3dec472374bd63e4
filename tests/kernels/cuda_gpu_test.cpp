// The CUDA kernels on a GPU, against the CPU's: every bit must be the same, as in the shim.
#include "kernels/cuda_cases.h"
#include "kernels/element_types.h"
#include "kernels/on_gpu.h"
#include "kernels/summation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using cuda::GradientNorm;
using cuda::SpanOnDevice;
using testing::all_dtypes;
using testing::all_rules;
using testing::Array;
using testing::CudaStream;
using testing::DeviceMemory;
using testing::Dtypes;
using testing::fill_normal;
using testing::Shard;
using testing::span_sizes;
using testing::Variant;

using CudaGpu = testing::OnGpu;

struct OnDevice {
  DeviceMemory y, g, flags, scalars, norm, not_finite, spans, sum, workspace;
  std::vector<DeviceMemory> state;
  int64_t numel, span_count;

  OnDevice(const Shard& shard, const StepScalars& step, int64_t gradient_offset = 0)
      : y(shard.y),
        g(shard.g, static_cast<size_t>(gradient_offset) * c10::elementSize(shard.dtypes.grad)),
        flags(shard.flags),
        scalars(sizeof(StepScalars)),
        norm(sizeof(GradientNorm)),
        not_finite(sizeof(int32_t)),
        spans(shard.sizes.size() * sizeof(SpanOnDevice)),
        sum(sizeof(double)),
        workspace(sizeof(double) * static_cast<size_t>(cuda::sum_of_squares_workspace_numel(
                                       shard.numel, static_cast<int64_t>(shard.sizes.size())))),
        numel(shard.numel),
        span_count(static_cast<int64_t>(shard.sizes.size())) {
    for (const Array& tensor : shard.state) state.emplace_back(tensor);
    const auto grad_bytes = static_cast<int64_t>(c10::elementSize(shard.dtypes.grad));
    std::vector<SpanOnDevice> table;
    for (size_t i = 0; i < shard.sizes.size(); ++i) {
      const char* flag = flags.data<char>() + static_cast<int64_t>(i) * grad_bytes;
      char* parameters =
          y.data<char>() + shard.begins[i] * static_cast<int64_t>(c10::elementSize(shard.dtypes.param));
      table.push_back({g.data<char>() + shard.begins[i] * grad_bytes, shard.begins[i], shard.sizes[i],
          i == 0 ? nullptr : flag, parameters, static_cast<int64_t>(i)});
    }
    spans.write(table.data());
    scalars.write(&step);
    const GradientNorm no_clipping{0, 1, 0};
    norm.write(&no_clipping);
    const double zero = 0;
    sum.write(&zero);
    const int32_t finite = 0;
    not_finite.write(&finite);
  }

  void update(const Variant& variant, const Dtypes& dtypes, cudaStream_t stream) const {
    cuda::ShardUpdate shard{{}, numel, spans.data<SpanOnDevice>(), span_count, scalars.data<StepScalars>(),
        norm.data<GradientNorm>(), not_finite.data<int32_t>()};
    for (int i = 0; i < variant.state_tensors(); ++i) shard.state[i] = state[static_cast<size_t>(i)].data();
    cuda::update(variant.rule, variant.scalars, dtypes.param, dtypes.grad, shard, stream);
  }
  void sum_of_squares(ScalarType grad_dtype, cudaStream_t stream) const {
    cuda::sum_of_squares(grad_dtype, spans.data<SpanOnDevice>(), span_count, numel, workspace.data<double>(),
        sum.data<double>(), stream);
  }
  double sum_of_powers(ScalarType grad_dtype, double p, const CudaStream& stream) const {
    return reduced(stream, [&] {
      cuda::sum_of_powers(grad_dtype, p, spans.data<SpanOnDevice>(), span_count, numel,
          workspace.data<double>(), sum.data<double>(), stream);
    });
  }
  double inner_product(ScalarType grad_dtype, double weight, const CudaStream& stream) const {
    return reduced(stream, [&] {
      cuda::inner_product(grad_dtype, weight, state[0].data(), state[1].data(), spans.data<SpanOnDevice>(),
          span_count, numel, workspace.data<double>(), sum.data<double>(), stream);
    });
  }
  double max_abs(ScalarType grad_dtype, const CudaStream& stream) const {
    return reduced(stream, [&] {
      cuda::max_abs(grad_dtype, spans.data<SpanOnDevice>(), span_count, numel, workspace.data<double>(),
          sum.data<double>(), stream);
    });
  }
  template <typename Launch>
  double reduced(const CudaStream& stream, const Launch& launch) const {
    double result = 0;
    sum.write(&result);
    launch();
    stream.wait();
    sum.read(&result);
    return result;
  }
  bool found_not_finite() const {
    int32_t flag = -1;
    not_finite.read(&flag);
    return flag != 0;
  }
  bool same_bits(const Shard& shard) const {
    const auto same = [](const DeviceMemory& memory, const Array& expected) {
      Array read(expected.dtype(), expected.numel());
      memory.read(read.data());
      return read.same_bits(expected);
    };
    for (size_t i = 0; i < state.size(); ++i) {
      if (!same(state[i], shard.state[i])) return false;
    }
    return same(y, shard.y) && same(g, shard.g);
  }
};

void expect_the_bits_of_the_cpu(const std::vector<int64_t>& sizes) {
  const CudaStream stream;
  uint32_t seed = 1;
  for (const Dtypes& dtypes : all_dtypes()) {
    for (const bool some_unused : {false, true}) {
      const Shard before(dtypes, sizes, some_unused, ++seed);
      for (const Variant& variant : all_rules()) {
        Shard expected = before;
        expected.update_on_cpu(variant.rule, variant.scalars);
        for (const int64_t offset : {0, 1}) {
          const OnDevice shard(before, variant.scalars, offset);
          shard.update(variant, dtypes, stream);
          stream.wait();
          ASSERT_TRUE(shard.same_bits(expected))
              << variant.name << ", " << c10::toString(dtypes.param) << ", offset " << offset;
        }
      }
    }
  }
}

TEST_F(CudaGpu, UpdateGivesTheBitsOfTheCpu) {
  std::vector<int64_t> sizes = span_sizes();
  sizes.push_back(1'000'003);
  expect_the_bits_of_the_cpu(sizes);
}

// What a sanitizer has time for.
TEST_F(CudaGpu, UpdateOfSmallSpansGivesTheBitsOfTheCpu) { expect_the_bits_of_the_cpu(span_sizes()); }

TEST_F(CudaGpu, FoundInfChangesNothing) {
  const CudaStream stream;
  for (const Variant& variant : all_rules()) {
    const Shard before({ScalarType::Float, ScalarType::Float}, {50'000, 3}, false, 7);
    const OnDevice shard(before, variant.scalars);
    const GradientNorm found{std::numeric_limits<double>::infinity(), 1, 1};
    shard.norm.write(&found);
    shard.update(variant, before.dtypes, stream);
    stream.wait();
    EXPECT_TRUE(shard.same_bits(before)) << variant.name;
  }
}

TEST_F(CudaGpu, UpdateSeesWhatIsNotFinite) {
  const CudaStream stream;
  for (const Dtypes& dtypes : all_dtypes()) {
    for (const Variant& variant : all_rules()) {
      for (const int64_t bad : {-1, 0, 40'001, 50'002}) {
        Shard expected(dtypes, {50'003}, false, 7);
        if (bad >= 0) expected.g.set(bad, std::numeric_limits<double>::quiet_NaN());
        const OnDevice shard(expected, variant.scalars);
        shard.update(variant, dtypes, stream);
        stream.wait();
        EXPECT_EQ(shard.found_not_finite(), bad >= 0) << variant.name << " " << bad;
      }
    }
  }
}

TEST_F(CudaGpu, SumsOfPowersAreThoseOfTheCpu) {
  const CudaStream stream;
  uint32_t seed = 1;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const std::vector<int64_t>& sizes :
        {span_sizes(), std::vector<int64_t>{100 * kSumTileNumel + 1234, 5}}) {
      Shard expected({dtype, dtype}, sizes, true, ++seed);
      const OnDevice shard(expected, StepScalars());
      EXPECT_EQ(shard.sum_of_powers(dtype, 1, stream), expected.sum_of_powers_on_cpu(0, 1));
      EXPECT_EQ(shard.sum_of_powers(dtype, 2, stream), expected.sum_of_squares_on_cpu(0));
      const double general = expected.sum_of_powers_on_cpu(0, 3.5);
      EXPECT_NEAR(shard.sum_of_powers(dtype, 3.5, stream), general, 1e-12 * general);
      EXPECT_EQ(shard.max_abs(dtype, stream), expected.max_abs_on_cpu());
      EXPECT_EQ(shard.inner_product(dtype, 0.3, stream), expected.inner_product_on_cpu(0, 0.3));
    }
    Shard bad({dtype, dtype}, {20000, 100}, false, 5);
    bad.g.set(3, std::numeric_limits<double>::quiet_NaN());
    EXPECT_TRUE(std::isnan(OnDevice(bad, StepScalars()).max_abs(dtype, stream)));
  }
}

TEST_F(CudaGpu, ClampGivesTheBitsOfTheCpu) {
  const CudaStream stream;
  uint32_t seed = 1;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const int64_t offset : {0, 1}) {
      Shard expected({dtype, dtype}, span_sizes(), true, ++seed);
      expected.g.set(expected.begins[20], std::numeric_limits<double>::quiet_NaN());
      expected.g.set(expected.begins[20] + 9, -std::numeric_limits<double>::infinity());
      const OnDevice shard(expected, StepScalars(), offset);
      cuda::clamp_gradient(
          dtype, shard.spans.data<SpanOnDevice>(), shard.span_count, shard.numel, 0.1, stream);
      stream.wait();
      expected.clamp_on_cpu(0.1);
      EXPECT_TRUE(shard.same_bits(expected)) << c10::toString(dtype) << ", offset " << offset;
    }
  }
}

TEST_F(CudaGpu, InterpolateGivesTheBitsOfTheCpu) {
  const CudaStream stream;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const int64_t numel : {int64_t{1}, int64_t{7}, int64_t{4097}, int64_t{3'000'001}}) {
      std::mt19937 generator(3);
      Array x(state_dtype(dtype), numel), z(state_dtype(dtype), numel), expected(dtype, numel),
          read(dtype, numel);
      fill_normal(x, generator, 1.0);
      fill_normal(z, generator, 1.0);
      for (const double weight : {0.0, 0.1, 0.9, 1.0}) {
        interpolate(dtype, expected.data(), x.data(), z.data(), weight, numel);
        const DeviceMemory out(expected.byte_count()), from(x), to(z);
        cuda::interpolate(dtype, out.data(), from.data(), to.data(), weight, numel, stream);
        stream.wait();
        out.read(read.data());
        ASSERT_TRUE(read.same_bits(expected)) << c10::toString(dtype) << " " << numel;
      }
    }
  }
}

// The GPU converts with instructions of its own, the CPU with integer arithmetic: all that rounds in any way.
TEST_F(CudaGpu, ConversionsGiveTheBitsOfTheCpu) {
  const CudaStream stream;
  std::vector<float> values;
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const uint32_t lower :
        {0x0000U, 0x0001U, 0x0fffU, 0x1000U, 0x1001U, 0x2fffU, 0x3000U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      const float value = float_of_bits(upper << 16 | lower);
      values.push_back(std::isfinite(value) ? value : 0.0F);  // else x + 0 (x - x) is NaN
    }
  }
  Array x(ScalarType::Float, static_cast<int64_t>(values.size()));
  std::memcpy(x.data(), values.data(), values.size() * sizeof(float));
  const DeviceMemory from(x);
  for (const ScalarType dtype : {ScalarType::BFloat16, ScalarType::Half}) {
    Array expected(dtype, x.numel()), read(dtype, x.numel());
    interpolate(dtype, expected.data(), x.data(), x.data(), 0, x.numel());
    const DeviceMemory out(expected.byte_count());
    cuda::interpolate(dtype, out.data(), from.data(), from.data(), 0, x.numel(), stream);
    stream.wait();
    out.read(read.data());
    EXPECT_TRUE(read.same_bits(expected)) << c10::toString(dtype);

    // x = -gradient shows what was loaded.
    Variant plain = all_rules()[5];
    plain.scalars = StepScalars();
    plain.scalars.lr = 1;
    Shard all({dtype, dtype}, {0x10000}, false, 1);
    auto* bits = static_cast<uint16_t*>(all.g.data());
    const uint16_t exponent = dtype == ScalarType::Half ? 0x7c00 : 0x7f80;
    for (uint32_t i = 0; i < 0x10000; ++i)
      bits[i] = (i & exponent) == exponent ? 0 : static_cast<uint16_t>(i);
    const OnDevice shard(all, plain.scalars);
    shard.update(plain, all.dtypes, stream);
    stream.wait();
    all.update_on_cpu(plain.rule, plain.scalars);
    EXPECT_TRUE(shard.same_bits(all)) << c10::toString(dtype);
  }
}

TEST_F(CudaGpu, SumOfSquaresGivesTheBitsOfTheCpu) {
  const CudaStream stream;
  uint32_t seed = 1;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    for (const std::vector<int64_t>& sizes :
        {span_sizes(), std::vector<int64_t>{100 * kSumTileNumel + 1234, 5}, std::vector<int64_t>(5000, 3)}) {
      for (const int64_t offset : {0, 1}) {
        Shard expected({dtype, dtype}, sizes, true, ++seed);
        const OnDevice shard(expected, StepScalars(), offset);
        shard.sum_of_squares(dtype, stream);
        stream.wait();
        double sum = -1;
        shard.sum.read(&sum);
        EXPECT_EQ(sum, expected.sum_of_squares_on_cpu(0)) << c10::toString(dtype);
      }
    }
  }
}

TEST_F(CudaGpu, SquaresByParameterAreThoseOfTheCpu) {
  const CudaStream stream;
  std::vector<int64_t> sizes(1100, 3);
  sizes[1050] = 3 * kSumTileNumel + 5;
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    Shard expected({dtype, dtype}, sizes, true, 3);
    const OnDevice shard(expected, StepScalars());
    std::vector<double> squares(sizes.size(), 0.25);
    const DeviceMemory on_device(squares.size() * sizeof(double));
    on_device.write(squares.data());
    cuda::squares_by_parameter(dtype, shard.spans.data<SpanOnDevice>(), shard.span_count, shard.numel,
        shard.workspace.data<double>(), on_device.data<double>(), stream);
    stream.wait();
    on_device.read(squares.data());
    for (size_t i = 0; i < sizes.size(); ++i) {
      const double own =
          expected.used[i] ? sum_of_squares(dtype, Shard::at(expected.g, expected.begins[i]), sizes[i]) : 0;
      ASSERT_EQ(squares[i], 0.25 + own) << c10::toString(dtype) << " " << i;
    }
  }
}

// Registered as a test of its own (tests/kernels/CMakeLists.txt), so that the others count where it has no room.
TEST_F(CudaGpu, MoreThan2To31Elements) {
  constexpr int64_t kNumel = (int64_t{1} << 31) + 4096;
  size_t free = 0, total = 0;
  ZEROSCHED_CHECK_CUDA(cudaMemGetInfo(&free, &total));
  constexpr size_t kNeeded = static_cast<size_t>(kNumel) * (2 + 2 + 4 + 4);
  if (free < kNeeded + (size_t{1} << 30)) GTEST_SKIP() << "needs 26 GiB of GPU memory";
  const CudaStream stream;
  const auto numel = static_cast<size_t>(kNumel);
  const DeviceMemory y(numel * 2), g(numel * 2), x(numel * 4), m(numel * 4);
  for (const DeviceMemory* memory : {&y, &g, &x, &m}) memory->fill(0);
  BFloat16 one;
  store(one, 1.0F);
  const std::vector<int64_t> places = {0, (int64_t{1} << 31) - 1, int64_t{1} << 31, kNumel - 1};
  for (const int64_t place : places) {
    ZEROSCHED_CHECK_CUDA(cudaMemcpy(g.data<BFloat16>() + place, &one, sizeof(one), cudaMemcpyHostToDevice));
  }
  ZEROSCHED_CHECK_CUDA(cudaDeviceSynchronize());  // as in DeviceMemory::write
  StepScalars step;
  step.lr = 2;
  const DeviceMemory scalars(sizeof(step)), spans(sizeof(SpanOnDevice)), sum(sizeof(double)),
      workspace(sizeof(double) * static_cast<size_t>(cuda::sum_of_squares_workspace_numel(kNumel, 1)));
  scalars.write(&step);
  const SpanOnDevice span{g.data(), 0, kNumel, nullptr, y.data()};
  spans.write(&span);
  double result = 0;
  sum.write(&result);
  cuda::sum_of_squares(ScalarType::BFloat16, spans.data<SpanOnDevice>(), 1, kNumel, workspace.data<double>(),
      sum.data<double>(), stream);
  cuda::update(Rule::sgd, step, ScalarType::BFloat16, ScalarType::BFloat16,
      {{x.data(), m.data(), nullptr}, kNumel, spans.data<SpanOnDevice>(), 1, scalars.data<StepScalars>(),
          nullptr},
      stream);
  stream.wait();
  sum.read(&result);
  EXPECT_EQ(result, static_cast<double>(places.size()));
  for (const int64_t place : places) {
    float value = 0;
    ZEROSCHED_CHECK_CUDA(cudaMemcpy(&value, x.data<float>() + place, sizeof(value), cudaMemcpyDeviceToHost));
    EXPECT_EQ(value, -2) << place;
  }
}

// A whole step without the host: norm, clipping and update are captured once and replayed on new gradients
// and scalars.
TEST_F(CudaGpu, AStepIsCapturedInAGraph) {
  const Dtypes dtypes{ScalarType::BFloat16, ScalarType::Float};
  Variant variant = all_rules()[1];
  Shard expected(dtypes, span_sizes(), true, 3);
  const OnDevice shard(expected, variant.scalars);
  const CudaStream stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  ZEROSCHED_CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  ZEROSCHED_CHECK_CUDA(cudaMemsetAsync(shard.sum.data(), 0, sizeof(double), stream));
  shard.sum_of_squares(dtypes.grad, stream);
  cuda::gradient_norm(shard.sum.data<double>(), shard.scalars.data<StepScalars>(), 0.5, true,
      ScalarType::Float, shard.norm.data<GradientNorm>(), stream);
  shard.update(variant, dtypes, stream);
  ZEROSCHED_CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  ZEROSCHED_CHECK_CUDA(cudaGraphInstantiate(&replay, graph, 0));
  for (uint32_t step = 0; step < 4; ++step) {
    std::mt19937 generator(step);
    fill_normal(expected.g, generator, 0.1);
    if (step == 2) expected.g.set(expected.begins[20] + 9, std::numeric_limits<double>::infinity());
    variant.scalars.lr = 0.01 * (step + 1);
    shard.g.write(expected.g.data());
    shard.scalars.write(&variant.scalars);
    ZEROSCHED_CHECK_CUDA(cudaGraphLaunch(replay, stream));
    stream.wait();
    GradientNorm norm{};
    shard.norm.read(&norm);
    EXPECT_EQ(norm.found_inf, step == 2 ? 1 : 0) << "an infinity in the third step";
    if (step != 2) {
      const double expected_norm = std::sqrt(expected.sum_of_squares_on_cpu(0)) * variant.scalars.grad_scale;
      EXPECT_EQ(norm.norm, expected_norm);
      StepScalars clipped = variant.scalars;
      clipped.grad_scale *= std::min(1.0, 0.5 / (expected_norm + 1e-6));
      expected.update_on_cpu(variant.rule, clipped);
    }
    EXPECT_TRUE(shard.same_bits(expected)) << "step " << step;
  }
  ZEROSCHED_CHECK_CUDA(cudaGraphExecDestroy(replay));
  ZEROSCHED_CHECK_CUDA(cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace zerosched::kernels
