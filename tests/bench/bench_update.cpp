// Bytes per second of the update kernel, beside a plain read-modify-write loop that moves as many bytes.
//
// Counted for float32: g, z, x, v read and y, z, x, v written, 32 bytes per element; for the loop four
// arrays read and the same four written, 32 bytes per element. What caches fetch besides is not counted.
#include "kernels/kernels.h"

#include <ATen/Parallel.h>
#include <c10/core/ScalarType.h>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr int64_t kOutOfCache = 19'000'000;
constexpr int64_t kInCache = 1 << 16;

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void scale_and_shift(float* a, float* b, float* c, float* d, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) {
    a[i] = a[i] * 0.999f + 1e-3f;
    b[i] = b[i] * 0.999f + 1e-3f;
    c[i] = c[i] * 0.999f + 1e-3f;
    d[i] = d[i] * 0.999f + 1e-3f;
  }
}

void read_modify_write(benchmark::State& state) {
  at::set_num_threads(static_cast<int>(state.range(0)));
  const int64_t numel = state.range(1);
  std::vector<std::vector<float>> arrays(4, std::vector<float>(static_cast<size_t>(numel), 0.5f));
  for (auto _ : state) {
    at::parallel_for(0, numel, 1 << 15, [&](int64_t begin, int64_t end) {
      scale_and_shift(arrays[0].data() + begin, arrays[1].data() + begin, arrays[2].data() + begin,
                      arrays[3].data() + begin, end - begin);
    });
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * numel * 4 * 2 * static_cast<int64_t>(sizeof(float)));
}

template <c10::ScalarType kParam, c10::ScalarType kGrad>
void update(benchmark::State& state) {
  using zerosched::kernels::state_dtype;
  at::set_num_threads(static_cast<int>(state.range(0)));
  const int64_t numel = state.range(1);
  const auto param_bytes = static_cast<int64_t>(c10::elementSize(kParam));
  const auto grad_bytes = static_cast<int64_t>(c10::elementSize(kGrad));
  const auto state_bytes = static_cast<int64_t>(c10::elementSize(state_dtype(kParam)));
  std::vector<std::byte> y(static_cast<size_t>(numel * param_bytes));
  // Bytes of 0x3c are 0.0115 in float32 and bfloat16, and 1.6e-18 in float64: ordinary numbers.
  std::vector<std::byte> g(static_cast<size_t>(numel * grad_bytes), std::byte{0x3c});
  std::vector<std::byte> z(static_cast<size_t>(numel * state_bytes), std::byte{0x3c});
  std::vector<std::byte> x = z;
  std::vector<std::byte> v = z;

  zerosched::kernels::ScheduleFreeScalars scalars;
  scalars.lr = 1e-3;
  scalars.beta2 = 0.99;
  scalars.bias_correction2 = 0.5;
  scalars.eps = 1e-8;
  scalars.weight_decay = 0.1;
  scalars.y_weight_before = scalars.y_weight = 0.1;
  scalars.c = 0.01;
  for (auto _ : state) {
    zerosched::kernels::adamw_schedule_free(
        {kParam, kGrad, y.data(), g.data(), z.data(), x.data(), v.data(), numel}, scalars);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * numel * (param_bytes + grad_bytes + 6 * state_bytes));
}

constexpr auto kFloat = c10::ScalarType::Float;
constexpr auto kDouble = c10::ScalarType::Double;
constexpr auto kBFloat16 = c10::ScalarType::BFloat16;

void sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"threads", "numel"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int64_t numel : {kInCache, kOutOfCache}) {
    for (const int64_t threads : {1, 2}) bench->Args({threads, numel});
  }
}

BENCHMARK(read_modify_write)->Apply(sizes);
BENCHMARK_TEMPLATE(update, kFloat, kFloat)->Name("update/float32")->Apply(sizes);
BENCHMARK_TEMPLATE(update, kBFloat16, kBFloat16)->Name("update/bfloat16")->Apply(sizes);
BENCHMARK_TEMPLATE(update, kBFloat16, kFloat)->Name("update/bfloat16_grad_float32")->Apply(sizes);
BENCHMARK_TEMPLATE(update, kDouble, kDouble)->Name("update/float64")->Apply(sizes);

/// Prints as Google Benchmark does, and at the end the ratio of medians.
class RatioReporter : public benchmark::ConsoleReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type == Run::RT_Iteration && !run.error_occurred) {
        speeds_[run.run_name.function_name + "/" + run.run_name.args].push_back(
            run.counters.at("bytes_per_second"));
      }
    }
    ConsoleReporter::ReportRuns(runs);
  }

  void Finalize() override {
    std::printf("\nmedian bytes per second, and its ratio to read_modify_write's of the same run\n");
    for (const auto& [name, speeds] : speeds_) {
      const auto plain = speeds_.find("read_modify_write/" + name.substr(name.find("threads:")));
      std::printf("%-56s %7.2f GB/s", name.c_str(), median(speeds) / 1e9);
      if (plain != speeds_.end()) std::printf("  ratio %.2f", median(speeds) / median(plain->second));
      std::printf("\n");
    }
  }

 private:
  static double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }

  std::map<std::string, std::vector<double>> speeds_;
};

}  // namespace

int main(int argc, char** argv) {
  // Repetitions of all benchmarks alternate, so that other load on the machine meets them alike.
  std::vector<std::string> arguments = {
      argv[0], "--benchmark_repetitions=9", "--benchmark_min_time=0.2",
      "--benchmark_enable_random_interleaving=true", "--benchmark_report_aggregates_only=false"};
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  int count = static_cast<int>(pointers.size());
  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return 2;
  RatioReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  benchmark::Shutdown();
  return 0;
}
