#include "beyond_int.h"

#include "kernels/cuda/launch.h"
#include "kernels/element_types.h"
#include "kernels/rules/sgd.h"
#include "kernels/summation.h"

#include "cuda_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

using namespace zerosched::kernels;

constexpr int64_t kNumel = (int64_t{1} << 31) + 3 * 4096 + 13;
constexpr int64_t kMargin = 512;  // what a bucket has more: flags and padding
constexpr int64_t kUpdateTile = 4096;
constexpr int64_t kClampTile = 4096;
// Enough for every tile to have a block of its own, and too few for tiles to be small.
constexpr int64_t kMultiprocessors = 1 << 18;

/// Address space that becomes memory, of zeros, where it is touched, between as much on either side that may not be
/// touched: what an index of the wrong sign finds there would else be gigabytes of another array.
template <typename T>
class Sparse {
 public:
  Sparse() {
    whole_ = mmap(nullptr, 3 * kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cuda_shim::require(whole_ != MAP_FAILED, "no address space for a large array");
    void* middle = static_cast<char*>(whole_) + kBytes;
    cuda_shim::require(mprotect(middle, kBytes, PROT_READ | PROT_WRITE) == 0, "no memory for a large array");
    data_ = static_cast<T*>(middle);
  }
  ~Sparse() { munmap(whole_, 3 * kBytes); }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kBytes =
      (static_cast<size_t>(kNumel + kMargin) * sizeof(T) + kPage - 1) / kPage * kPage;
  void* whole_;
  T* data_;
};

const std::vector<int64_t>& places() {
  static const std::vector<int64_t> values = {
      0, 5, (int64_t{1} << 31) - 1, int64_t{1} << 31, (int64_t{1} << 31) + 4096, kNumel - 14, kNumel - 1};
  return values;
}

std::vector<unsigned> blocks_of(int64_t tile_numel) {
  std::vector<unsigned> blocks;
  for (const int64_t place : places()) {
    const auto block = static_cast<unsigned>(place / tile_numel);
    if (blocks.empty() || blocks.back() != block) blocks.push_back(block);
  }
  return blocks;
}

}  // namespace

bool run_beyond_int() {
  Sparse<BFloat16> y, gradient;
  Sparse<float> x, m;
  int64_t count = 0;
  for (const int64_t place : places()) {
    store(gradient[place], 1.0F + static_cast<float>(count));
    x[place] = 8;
    ++count;
  }
  StepScalars scalars;
  scalars.lr = 0.5;
  const cuda::SpanOnDevice span{gradient.data(), 0, kNumel, nullptr, y.data()};
  bool right = true;

  cuda_shim::run_only_blocks(blocks_of(kUpdateTile));
  cuda::launch_update<BFloat16, BFloat16>(Rule::sgd, scalars,
      {{x.data(), m.data(), nullptr}, kNumel, &span, 1, &scalars, nullptr}, kMultiprocessors, nullptr);
  count = 0;
  for (const int64_t place : places()) {
    const float expected = 8 - 0.5F * (1.0F + static_cast<float>(count++));
    right = right && x[place] == expected && load(y[place]) == expected;
  }

  std::vector<double> workspace(static_cast<size_t>(cuda::tile_count(kNumel, 1, kSumTileNumel)));
  double sum = 0;
  std::vector<unsigned> blocks =
      blocks_of(kSumTileNumel);  // block 0 is also the only one of the second kernel
  cuda_shim::run_only_blocks(blocks);
  cuda::launch_sum_of_powers<BFloat16>(2, &span, 1, kNumel, workspace.data(), &sum, nullptr);
  right = right && sum == 1 + 4 + 9 + 16 + 25 + 36 + 49;

  blocks = blocks_of(kClampTile);
  cuda_shim::run_only_blocks(blocks);
  cuda::launch_clamp_gradient<BFloat16>(&span, 1, kNumel, 3, kMultiprocessors, nullptr);
  count = 0;
  for (const int64_t place : places()) {
    const float expected = std::min(1.0F + static_cast<float>(count++), 3.0F);
    right = right && load(gradient[place]) == expected;
  }

  constexpr int64_t kInterpolateBlock = 256 * 8;
  for (const int64_t place : places()) x[place] = 3;
  blocks = blocks_of(kInterpolateBlock);
  blocks.push_back(0);  // the first threads also take what is left after the last pack
  cuda_shim::run_only_blocks(blocks);
  cuda::launch_interpolate<BFloat16>(y.data(), x.data(), m.data(), 0, kNumel, kMultiprocessors, nullptr);
  for (const int64_t place : places()) right = right && load(y[place]) == 3;

  // 4 KiB a warp, 8 warps a block; y is the bucket's buffer, of two slices.
  const int64_t shard = (kNumel + 127) / 128 * 64, slice = shard + 64;
  const cuda::PackSlot slot{gradient.data(), 0, kNumel, cuda::ElementType::bfloat16};
  const int64_t tiles = (shard + 2047) / 2048;
  blocks.clear();
  for (const int64_t place : places()) {
    const auto block = static_cast<unsigned>((place / shard * tiles + place % shard / 2048) / 8);
    if (blocks.empty() || blocks.back() != block) blocks.push_back(block);
  }
  cuda_shim::run_only_blocks(blocks);
  cuda::launch_pack<BFloat16>({y.data(), 2, shard, 64, slice, nullptr, 2}, &slot, 1, 1 << 15, nullptr);
  count = 0;
  for (const int64_t place : places()) {
    const float expected = 2 * std::min(1.0F + static_cast<float>(count++), 3.0F);
    right = right && load(y[place / shard * slice + place % shard]) == expected;
  }
  cuda_shim::run_only_blocks({});
  return right;
}
