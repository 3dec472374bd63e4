// Bytes per second of the CUDA update, beside a device-to-device copy that moves as many bytes, in the same
// run. The goal is 0.90 of the copy.
//
// usage: bench_update_gpu [ELEMENTS]      per shard; 2^27 by default, well beyond any GPU's cache
//
// Counted per element: what the algorithm reads and writes (32 bytes for float32 AdamW Schedule-Free); for
// the copy each byte read and written.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/device_memory.h"
#include "kernels/kernels.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <vector>

namespace {

namespace gpu = zerosched::kernels::cuda;  // cuda alone is the toolkit's
using c10::ScalarType;
using gpu::GradientSpan;
using zerosched::kernels::Rule;
using zerosched::kernels::state_dtype;
using zerosched::kernels::StepScalars;
using zerosched::kernels::testing::CudaStream;
using zerosched::kernels::testing::DeviceMemory;

constexpr int kRepetitions = 25;
constexpr double kGoal = 0.90;

class Event {
 public:
  Event() { ZEROSCHED_CHECK_CUDA(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Seconds of the median run; one run before that does not count.
double median_seconds(cudaStream_t stream, const std::function<void()>& work) {
  const Event start, end;
  std::vector<double> seconds;
  for (int i = 0; i <= kRepetitions; ++i) {
    ZEROSCHED_CHECK_CUDA(cudaEventRecord(start, stream));
    work();
    ZEROSCHED_CHECK_CUDA(cudaEventRecord(end, stream));
    ZEROSCHED_CHECK_CUDA(cudaEventSynchronize(end));
    float milliseconds = 0;
    ZEROSCHED_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, start, end));
    if (i > 0) seconds.push_back(milliseconds / 1e3);
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRepetitions / 2, seconds.end());
  return seconds[kRepetitions / 2];
}

double copy_bandwidth(size_t bytes, cudaStream_t stream) {
  const DeviceMemory from(bytes), to(bytes);
  ZEROSCHED_CHECK_CUDA(cudaMemset(from.data(), 0x3c, bytes));
  const double seconds = median_seconds(stream, [&] {
    ZEROSCHED_CHECK_CUDA(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream));
  });
  return 2.0 * static_cast<double>(bytes) / seconds;
}

struct Case {
  const char* name;
  Rule rule;
  int state_tensors;
  ScalarType param;
  ScalarType grad;
};

/// spans: 1, or many of equal size, as where gradients stay where autograd made them.
void run(const Case& c, int64_t numel, int64_t span_count, cudaStream_t stream) {
  const auto param_bytes = c10::elementSize(c.param);
  const auto grad_bytes = c10::elementSize(c.grad);
  const auto state_bytes = c10::elementSize(state_dtype(c.param));
  const auto count = static_cast<size_t>(numel);
  const size_t moved =
      count * (param_bytes + grad_bytes + 2 * static_cast<size_t>(c.state_tensors) * state_bytes);
  const double copy = copy_bandwidth(moved / 2, stream);

  const DeviceMemory y(count * param_bytes), g(count * grad_bytes);
  std::vector<DeviceMemory> state;
  for (int i = 0; i < c.state_tensors; ++i) {
    state.emplace_back(count * state_bytes);
    ZEROSCHED_CHECK_CUDA(cudaMemset(state.back().data(), 0x3c, count * state_bytes));
  }
  ZEROSCHED_CHECK_CUDA(cudaMemset(g.data(), 0x3c, count * grad_bytes));
  StepScalars step;
  step.lr = 1e-3, step.beta1 = 0.9, step.beta2 = 0.99, step.bias_correction2 = 0.5, step.eps = 1e-8;
  step.weight_decay = 0.1, step.y_weight_before = 0.1, step.y_weight = 0.1, step.c = 0.01;
  const DeviceMemory scalars(sizeof(step));
  scalars.write(&step);
  std::vector<GradientSpan> table;
  const int64_t span_numel = numel / span_count;
  for (int64_t s = 0; s < span_count; ++s) {
    table.push_back({g.data<char>() + s * span_numel * static_cast<int64_t>(grad_bytes), s * span_numel,
        span_numel, nullptr, y.data<char>() + s * span_numel * static_cast<int64_t>(param_bytes)});
  }
  const DeviceMemory spans(table.size() * sizeof(GradientSpan));
  spans.write(table.data());

  gpu::ShardUpdate shard{
      {}, numel, spans.data<GradientSpan>(), span_count, scalars.data<StepScalars>(), nullptr};
  for (size_t i = 0; i < state.size(); ++i) shard.state[i] = state[i].data();
  const double seconds =
      median_seconds(stream, [&] { gpu::update(c.rule, step, c.param, c.grad, shard, stream); });
  const double bandwidth = static_cast<double>(moved) / seconds;
  std::printf("%-36s %6lld spans  %8.1f GB/s  copy %8.1f GB/s  ratio %.2f%s\n", c.name,
      static_cast<long long>(span_count), bandwidth / 1e9, copy / 1e9, bandwidth / copy,
      bandwidth / copy < kGoal ? "  below the goal of 0.90" : "");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string reason = zerosched::kernels::testing::why_no_gpu();
  if (!reason.empty()) {
    std::printf("SKIPPED: %s\n", reason.c_str());
    return 77;
  }
  try {
    const int64_t numel = argc > 1 ? std::atoll(argv[1]) : int64_t{1} << 27;
    if (numel < 4096) {
      std::fprintf(stderr, "bench_update_gpu: ELEMENTS is a number of at least 4096, not '%s'\n", argv[1]);
      return 2;
    }
    cudaDeviceProp properties{};
    ZEROSCHED_CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
    std::printf("%s, %d multiprocessors; %lld elements, median of %d\n", properties.name,
        properties.multiProcessorCount, static_cast<long long>(numel), kRepetitions);
    const Case cases[] = {
        {"AdamW Schedule-Free float32", Rule::adamw_schedule_free, 3, ScalarType::Float, ScalarType::Float},
        {"AdamW Schedule-Free bfloat16", Rule::adamw_schedule_free, 3, ScalarType::BFloat16,
            ScalarType::BFloat16},
        {"AdamW Schedule-Free bfloat16, g float32", Rule::adamw_schedule_free, 3, ScalarType::BFloat16,
            ScalarType::Float},
        {"AdamW Schedule-Free float16, g float32", Rule::adamw_schedule_free, 3, ScalarType::Half,
            ScalarType::Float},
        {"SGD Schedule-Free float32", Rule::sgd_schedule_free, 2, ScalarType::Float, ScalarType::Float},
        {"AdamW float32", Rule::adamw, 3, ScalarType::Float, ScalarType::Float}};
    const CudaStream stream;
    for (const Case& c : cases) {
      for (const int64_t span_count : {int64_t{1}, numel / 4096})
        run(c, numel / 4096 * 4096, span_count, stream);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_update_gpu: %s\n", error.what());
    return 1;
  }
  return 0;
}
