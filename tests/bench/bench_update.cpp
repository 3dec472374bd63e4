// Bytes per second of the update kernel, beside a plain read-modify-write loop that moves as many bytes.
//
// Counted for float32: g, z, x, v read and y, z, x, v written, 32 bytes per element; for the loop four
// arrays read and the same four written, 32 bytes per element. What caches fetch besides is not counted.
#include "kernels/kernels.h"
#include "support/median.h"

#include <ATen/Parallel.h>
#include <c10/core/ScalarType.h>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

/// Bytes aligned as LibTorch's are. 0x3c everywhere is 0.0115 in float32 and bfloat16, 1.6e-18 in float64:
/// ordinary numbers.
std::unique_ptr<void, Free> allocate(int64_t byte_count) {
  const auto rounded = static_cast<size_t>((byte_count + 63) / 64 * 64);
  std::unique_ptr<void, Free> memory(std::aligned_alloc(64, rounded));
  std::fill_n(static_cast<char*>(memory.get()), rounded, char{0x3c});
  return memory;
}

constexpr int64_t kOutOfCache = 19'000'000;
constexpr int64_t kInCache = 1 << 16;

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void scale_and_shift(
    float* __restrict a, float* __restrict b, float* __restrict c, float* __restrict d, int64_t numel) {
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
  std::unique_ptr<void, Free> memory[4];
  float* arrays[4];
  for (int i = 0; i < 4; ++i) {
    memory[i] = allocate(numel * static_cast<int64_t>(sizeof(float)));
    arrays[i] = static_cast<float*>(memory[i].get());
  }
  for (auto _ : state) {
    at::parallel_for(0, numel, 1 << 15, [&](int64_t begin, int64_t end) {
      scale_and_shift(
          arrays[0] + begin, arrays[1] + begin, arrays[2] + begin, arrays[3] + begin, end - begin);
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
  const auto y = allocate(numel * param_bytes);
  const auto g = allocate(numel * grad_bytes);
  const auto z = allocate(numel * state_bytes);
  const auto x = allocate(numel * state_bytes);
  const auto v = allocate(numel * state_bytes);

  zerosched::kernels::StepScalars scalars;
  scalars.lr = 1e-3;
  scalars.beta2 = 0.99;
  scalars.bias_correction2 = 0.5;
  scalars.eps = 1e-8;
  scalars.weight_decay = 0.1;
  scalars.y_weight_before = scalars.y_weight = 0.1;
  scalars.c = 0.01;
  for (auto _ : state) {
    zerosched::kernels::update(zerosched::kernels::Rule::adamw_schedule_free,
        {kParam, kGrad, y.get(), g.get(), {z.get(), x.get(), v.get()}, numel}, scalars);
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
      std::printf("%-56s %7.2f GB/s", name.c_str(), zerosched::testing::median(speeds) / 1e9);
      if (plain != speeds_.end())
        std::printf(
            "  ratio %.2f", zerosched::testing::median(speeds) / zerosched::testing::median(plain->second));
      std::printf("\n");
    }
  }

 private:
  std::map<std::string, std::vector<double>> speeds_;
};

}  // namespace

int main(int argc, char** argv) {
  // Repetitions of all benchmarks alternate, so that other load on the machine meets them alike.
  std::vector<std::string> arguments = {argv[0], "--benchmark_repetitions=9", "--benchmark_min_time=0.2",
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
