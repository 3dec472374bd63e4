// The CUDA update beside a device-to-device copy that moves as many bytes, in the same run, on random data. The goal is
// 0.90 of the copy for what is large; a large case below its floor is a failure.
#include "bench/gpu_timing.h"
#include "bench/update_on_gpu.h"
#include "support/json_file.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <string>
#include <vector>

namespace {

using c10::ScalarType;
using zerosched::kernels::Rule;
using zerosched::testing::UpdateCase;
using zerosched::testing::UpdateRates;

constexpr double kGoal = 0.90;

struct Options {
  int64_t elements = int64_t{1} << 27;
  int repetitions = 15;
  double floor = 0.80;
  std::string json;
};

std::vector<UpdateCase> cases(const Options& options) {
  constexpr int64_t kTile = 4096;
  const int64_t large = std::max(options.elements / kTile, int64_t{1}) * kTile;
  const auto sf = Rule::adamw_schedule_free;
  const auto f32 = ScalarType::Float, bf16 = ScalarType::BFloat16, f16 = ScalarType::Half;
  std::vector<UpdateCase> all = {{"AdamWScheduleFree float32", sf, f32, f32, large, 1, 1, 0, options.floor},
      {"AdamWScheduleFree bfloat16", sf, bf16, bf16, large, 1, 1, 0, options.floor},
      {"AdamWScheduleFree bfloat16, g float32", sf, bf16, f32, large, 1, 1, 0, options.floor},
      {"AdamWScheduleFree float16, g float32", sf, f16, f32, large, 1, 1, 0, options.floor},
      {"SGDScheduleFree float32", Rule::sgd_schedule_free, f32, f32, large, 1, 1, 0, options.floor},
      {"AdamW float32", Rule::adamw, f32, f32, large, 1, 1, 0, options.floor}};
  for (const auto& [name, dtype] : {std::pair("float32", f32), std::pair("bfloat16", bf16)}) {
    all.push_back({std::string("many spans ") + name, sf, dtype, dtype, large, 1, large / kTile});
    all.push_back({std::string("90% zero gradients ") + name, sf, dtype, dtype, large, 1, 1, 0.9});
    // A bucket of 25 MiB on 8 ranks.
    all.push_back({std::string("shards ") + name, sf, dtype, dtype, int64_t{819'200}, 200});
    // Launches enough to be larger than the cache together.
    for (const int64_t numel : {100'000, 1'000'000, 10'000'000, 100'000'000, 1'000'000'000}) {
      const int64_t launches = std::clamp(int64_t{100'000'000} / numel, int64_t{1}, int64_t{400});
      all.push_back({std::string("sizes ") + name, sf, dtype, dtype, numel, launches});
    }
  }
  return all;
}

/// Whether it is not below its floor.
bool tell(const UpdateCase& c, const UpdateRates& rates, nlohmann::json& figures) {
  const double ratio = rates.update / rates.one_copy;
  const bool fails = ratio < c.floor;
  const char* remark = fails                          ? "  FAILED: below its floor"
                       : c.floor > 0 && ratio < kGoal ? "  below the goal"
                                                      : "";
  std::printf("%-38s %11lld x %3lld %6lld %10.2f us %7.0f GB/s  copy %5.0f %5.2f  copies %5.0f %5.2f%s\n",
      c.name.c_str(), static_cast<long long>(c.numel), static_cast<long long>(c.launches),
      static_cast<long long>(c.spans), rates.seconds * 1e6, rates.update / 1e9, rates.one_copy / 1e9, ratio,
      rates.copies / 1e9, rates.update / rates.copies, remark);
  std::fflush(stdout);
  figures.push_back({{"case", c.name}, {"elements", c.numel}, {"launches", c.launches}, {"spans", c.spans},
      {"bytes_per_element", bytes_per_element(c)}, {"seconds_per_launch", rates.seconds},
      {"bytes_per_second", rates.update}, {"of_one_copy", ratio}, {"of_copies", rates.update / rates.copies},
      {"copy_bytes_per_second", rates.one_copy}, {"floor", c.floor}});
  return !fails;
}

int run(const Options& options) {
  cudaDeviceProp properties{};
  ZEROSCHED_CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d multiprocessors; medians of %d\n%-38s %17s %6s %13s %12s  %11s  %13s\n",
      properties.name, properties.multiProcessorCount, options.repetitions, "", "elements x launches",
      "spans", "a launch", "update", "of one copy", "of as many");
  auto figures = nlohmann::json::array();
  bool passed = true;
  for (const UpdateCase& c : cases(options)) {
    const auto needed = static_cast<size_t>(bytes_needed(c)) + (size_t{1} << 30);
    if (zerosched::testing::free_gpu_bytes() < needed) {
      std::printf("%-38s %11lld: left out, it needs %zu GiB of GPU memory\n", c.name.c_str(),
          static_cast<long long>(c.numel), needed >> 30);
      continue;
    }
    passed = tell(c, measure(c, options.repetitions), figures) && passed;
  }
  zerosched::testing::write_json(options.json, figures);
  return passed ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("The CUDA update beside a device-to-device copy of as many bytes.", "bench_update_gpu");
  app.option_defaults()->always_capture_default();
  app.add_option("--elements", options.elements, "of the large cases")
      ->check(CLI::Range(int64_t{4096}, int64_t{1} << 36));
  app.add_option("--repetitions", options.repetitions, "of which the median counts")
      ->check(CLI::PositiveNumber);
  app.add_option("--floor", options.floor, "the ratio to the copy below which a large case fails")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--json", options.json, "file for the figures");
  CLI11_PARSE(app, argc, argv);
  return zerosched::testing::exit_code_on_gpu("bench_update_gpu", [&] { return run(options); });
}
