// The kernel that packs gradients into a bucket's buffer beside a device-to-device copy that moves as many bytes, in the
// same run, on random data.
#include "bench/gpu_data.h"
#include "bench/gpu_timing.h"
#include "kernels/cuda/cuda_kernels.h"
#include "support/json_file.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <string>
#include <vector>

namespace {

namespace gpu = zerosched::kernels::cuda;  // cuda alone is the toolkit's
using c10::ScalarType;
using zerosched::kernels::testing::CudaStream;
using zerosched::kernels::testing::DeviceMemory;
using zerosched::testing::random_block;
using zerosched::testing::spread;

struct Options {
  int64_t bucket_bytes = int64_t{200} << 20;
  int buckets = 8;  ///< together larger than the cache
  int repetitions = 15;
  std::string json;
};

struct Case {
  const char* name;
  ScalarType gradients, bucket;
  int64_t slot_numel;
  int64_t world_size;
  double weight;
};

std::vector<Case> cases() {
  const auto f32 = ScalarType::Float, bf16 = ScalarType::BFloat16;
  constexpr int64_t kMatrix = int64_t{1} << 22, kVector = 4096;
  return {{"matrices", bf16, bf16, kMatrix, 8, 1}, {"matrices", f32, f32, kMatrix, 8, 1},
      {"matrices", bf16, f32, kMatrix, 8, 1}, {"matrices", f32, bf16, kMatrix, 8, 1},
      {"weighted", bf16, bf16, kMatrix, 8, 0.75}, {"1,024 ranks", bf16, bf16, kMatrix, 1024, 1},
      {"vectors", bf16, bf16, kVector, 8, 1}, {"vectors", f32, f32, kVector, 8, 1}};
}

/// Buckets of slots of one size, each bucket with gradients of its own.
class Buckets {
 public:
  Buckets(const Case& c, const Options& options)
      : case_(c),
        slots_(
            std::max(options.bucket_bytes / static_cast<int64_t>(c10::elementSize(c.bucket)) / c.slot_numel,
                int64_t{1})),
        numel_(slots_ * c.slot_numel),
        report_(kRestNumel * sizeof(double)) {
    report_.fill(0);
    for (int b = 0; b < options.buckets; ++b) {
      const size_t bytes = static_cast<size_t>(numel_) * c10::elementSize(c.gradients);
      gradients_.emplace_back(bytes);
      spread(gradients_.back(), bytes, random_block(c.gradients, static_cast<uint32_t>(b), 0, false));
      buffers_.emplace_back(static_cast<size_t>(c.world_size * slice_numel()) * c10::elementSize(c.bucket));
    }
  }

  /// Of all launches, reads and writes.
  int64_t bytes() const {
    return static_cast<int64_t>(gradients_.size()) * numel_ *
           static_cast<int64_t>(c10::elementSize(case_.gradients) + c10::elementSize(case_.bucket));
  }
  int64_t slots() const { return slots_; }

  void pack(cudaStream_t stream) const {
    std::vector<gpu::PackSource> sources(static_cast<size_t>(slots_));
    for (size_t b = 0; b < gradients_.size(); ++b) {
      for (int64_t s = 0; s < slots_; ++s) {
        const int64_t begin = s * case_.slot_numel;
        sources[static_cast<size_t>(s)] = {
            gradients_[b].data<char>() + begin * static_cast<int64_t>(c10::elementSize(case_.gradients)),
            begin, case_.slot_numel, case_.gradients};
      }
      const gpu::PackBucket bucket{buffers_[b].data(), case_.world_size, numel_ / case_.world_size,
          flag_numel(), slice_numel(), report_.data(), case_.weight};
      gpu::pack(case_.bucket, bucket, sources.data(), slots_, stream);
    }
  }

 private:
  static constexpr int64_t kRestNumel = 128;
  int64_t flag_numel() const { return (slots_ / case_.world_size + 2 + 63) / 64 * 64; }
  int64_t slice_numel() const { return numel_ / case_.world_size + flag_numel() + kRestNumel; }

  Case case_;
  int64_t slots_, numel_;
  DeviceMemory report_;
  std::vector<DeviceMemory> gradients_, buffers_;
};

int run(const Options& options) {
  cudaDeviceProp properties{};
  ZEROSCHED_CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s; medians of %d, %d buckets of %lld MiB\n", properties.name, options.repetitions,
      options.buckets, static_cast<long long>(options.bucket_bytes >> 20));
  const CudaStream stream;
  auto figures = nlohmann::json::array();
  for (const Case& c : cases()) {
    double seconds = 0;
    int64_t bytes = 0, slots = 0;
    {
      const Buckets buckets(c, options);
      bytes = buckets.bytes();
      slots = buckets.slots();
      seconds =
          zerosched::testing::median_seconds(stream, options.repetitions, [&] { buckets.pack(stream); });
    }
    const double rate = static_cast<double>(bytes) / seconds;
    const double copy = zerosched::testing::copy_rate(
        static_cast<size_t>(bytes), options.buckets, options.repetitions, stream);
    std::printf(
        "%-12s %8s to %-8s %6lld slots, %4lld ranks %9.2f us a bucket %6.0f GB/s  copies %5.0f %5.2f\n",
        c.name, c10::toString(c.gradients), c10::toString(c.bucket), static_cast<long long>(slots),
        static_cast<long long>(c.world_size), seconds / options.buckets * 1e6, rate / 1e9, copy / 1e9,
        rate / copy);
    std::fflush(stdout);
    figures.push_back(
        {{"case", c.name}, {"gradients", c10::toString(c.gradients)}, {"bucket", c10::toString(c.bucket)},
            {"slots", slots}, {"ranks", c.world_size}, {"seconds_per_bucket", seconds / options.buckets},
            {"bytes_per_second", rate}, {"of_copies", rate / copy}});
  }
  zerosched::testing::write_json(options.json, figures);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Gradients packed into buckets, beside device-to-device copies of as many bytes.", "bench_pack_gpu");
  app.option_defaults()->always_capture_default();
  app.add_option("--bucket-bytes", options.bucket_bytes)
      ->check(CLI::Range(int64_t{1} << 20, int64_t{1} << 32));
  app.add_option("--buckets", options.buckets)->check(CLI::PositiveNumber);
  app.add_option("--repetitions", options.repetitions, "of which the median counts")
      ->check(CLI::PositiveNumber);
  app.add_option("--json", options.json, "file for the figures");
  CLI11_PARSE(app, argc, argv);
  return zerosched::testing::exit_code_on_gpu("bench_pack_gpu", [&] { return run(options); });
}
