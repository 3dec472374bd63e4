#include "bench/gpu_data.h"

#include "bench/gpu_timing.h"

#include <algorithm>
#include <random>

namespace zerosched::testing {

using c10::ScalarType;
using kernels::testing::Array;
using kernels::testing::DeviceMemory;

namespace {

constexpr int64_t kRow = 1024;
constexpr int64_t kBlock = 1024 * kRow;

}  // namespace

Array random_block(ScalarType dtype, uint32_t seed, double zero_rows, bool squares) {
  std::mt19937 generator(seed), rows(1);
  std::normal_distribution<double> normal(0.0, 0.1);
  std::bernoulli_distribution is_zero(zero_rows);
  Array block(dtype, kBlock);
  for (int64_t row = 0; row < kBlock / kRow; ++row) {
    const bool zero = is_zero(rows);
    for (int64_t i = 0; i < kRow; ++i) {
      const double value = zero ? 0.0 : normal(generator);
      block.set(row * kRow + i, squares ? value * value : value);
    }
  }
  return block;
}

void spread(const DeviceMemory& memory, size_t bytes, const Array& block) {
  size_t done = std::min(bytes, block.byte_count());
  ZEROSCHED_CHECK_CUDA(cudaMemcpy(memory.data(), block.data(), done, cudaMemcpyHostToDevice));
  for (; done < bytes; done = std::min(bytes, 2 * done)) {
    const size_t more = std::min(done, bytes - done);
    ZEROSCHED_CHECK_CUDA(
        cudaMemcpy(memory.data<char>() + done, memory.data(), more, cudaMemcpyDeviceToDevice));
  }
  ZEROSCHED_CHECK_CUDA(cudaDeviceSynchronize());
}

double copy_rate(size_t bytes, int64_t pieces, int repetitions, cudaStream_t stream) {
  const size_t piece = bytes / 2 / static_cast<size_t>(pieces);
  const size_t all = piece * static_cast<size_t>(pieces);
  const DeviceMemory from(all), to(all);
  spread(from, all, random_block(ScalarType::Float, 1, 0, false));
  const double seconds = median_seconds(stream, repetitions, [&] {
    for (size_t at = 0; at < all; at += piece) {
      ZEROSCHED_CHECK_CUDA(cudaMemcpyAsync(
          to.data<char>() + at, from.data<char>() + at, piece, cudaMemcpyDeviceToDevice, stream));
    }
  });
  return 2.0 * static_cast<double>(all) / seconds;
}

}  // namespace zerosched::testing
