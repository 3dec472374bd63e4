#include "kernels/kernels.h"
#include "base/check.h"

#include "kernels/cpu/variant.h"
#include "kernels/gradient_dtypes.h"
#include "kernels/summation.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <vector>

namespace zerosched::kernels {
namespace {

// Bytes of y from which a range counts as out of cache: with z, x, v and g it is 5 MiB or more.
constexpr int64_t kOutOfCacheBytes = int64_t{1} << 20;
// Bytes written from which a copy counts as out of cache.
constexpr int64_t kCopyOutOfCacheBytes = int64_t{8} << 20;
// Elements are handed to threads in blocks of this many, so that threads do not share cache lines or pages.
constexpr int64_t kBlockNumel = 2048;
// Blocks that are worth waking another thread for.
constexpr int64_t kGrainBlocks = 16;

const Variant& active() {
  static const Variant& fastest = *runnable_variants().back();
  return fastest;
}

void* at(void* data, int64_t index, c10::ScalarType dtype) {
  return static_cast<std::byte*>(data) + index * static_cast<int64_t>(c10::elementSize(dtype));
}

const void* at(const void* data, int64_t index, c10::ScalarType dtype) {
  return static_cast<const std::byte*>(data) + index * static_cast<int64_t>(c10::elementSize(dtype));
}

template <typename Function>
void for_each_range(int64_t numel, const Function& function) {
  const int64_t blocks = (numel + kBlockNumel - 1) / kBlockNumel;
  ::at::parallel_for(0, blocks, kGrainBlocks, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kBlockNumel;
    function(begin, std::min(last * kBlockNumel, numel) - begin);
  });
}

/// What sum_tile(begin, numel) gives for every tile, added in the order of summation.h.
template <typename SumTile>
double add_tiles(double p, int64_t numel, const SumTile& sum_tile) {
  const int64_t tiles = (numel + kSumTileNumel - 1) / kSumTileNumel;
  std::vector<double> sums(static_cast<size_t>(tiles));
  ::at::parallel_for(0, tiles, 2, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * kSumTileNumel;
      sums[static_cast<size_t>(tile)] = sum_tile(begin, std::min(kSumTileNumel, numel - begin));
    }
  });
  return with_power(p, [&](const auto& power) {
    using Power = std::decay_t<decltype(power)>;
    double lanes[kSumLanes] = {};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      double& lane = lanes[tile % kSumLanes];
      lane = Power::add(lane, sums[static_cast<size_t>(tile)]);
    }
    return add_pairwise<kSumLanes, Power>(lanes);
  });
}

}  // namespace

std::vector<const Variant*> runnable_variants() {
  std::vector<const Variant*> variants = {&kBaseline};
#ifdef ZEROSCHED_X86_VARIANTS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) variants.push_back(&kAvx2);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    variants.push_back(&kAvx512);
  }
#endif
  return variants;
}

bool is_supported(c10::ScalarType param_dtype) {
  return param_dtype == c10::ScalarType::Float || param_dtype == c10::ScalarType::Double ||
         param_dtype == c10::ScalarType::BFloat16 || param_dtype == c10::ScalarType::Half;
}

c10::ScalarType state_dtype(c10::ScalarType param_dtype) {
  return param_dtype == c10::ScalarType::Double ? c10::ScalarType::Double : c10::ScalarType::Float;
}

bool update(Rule rule, const UpdateRange& range, const StepScalars& scalars) {
  const c10::ScalarType state = state_dtype(range.param_dtype);
  ZEROSCHED_CHECK(is_supported(range.param_dtype) && can_update(range.param_dtype, range.grad_dtype),
      "no update kernel for ", c10::toString(range.param_dtype), " parameters with ",
      c10::toString(range.grad_dtype), " gradients.");
  const auto param_bytes = range.numel * static_cast<int64_t>(c10::elementSize(range.param_dtype));
  const bool out_of_cache = param_bytes >= kOutOfCacheBytes;
  std::atomic<bool> finite{true};
  for_each_range(range.numel, [&](int64_t begin, int64_t numel) {
    UpdateRange part = range;
    part.y = at(range.y, begin, range.param_dtype);
    part.g = at(range.g, begin, range.grad_dtype);
    for (void*& tensor : part.state) tensor = tensor == nullptr ? nullptr : at(tensor, begin, state);
    part.numel = numel;
    if (!active().update(rule, part, scalars, out_of_cache)) finite = false;
  });
  return finite;
}

void interpolate(
    c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight, int64_t numel) {
  const c10::ScalarType state = state_dtype(param_dtype);
  for_each_range(numel, [&](int64_t begin, int64_t count) {
    active().interpolate(
        param_dtype, at(out, begin, param_dtype), at(x, begin, state), at(z, begin, state), weight, count);
  });
}

double sum_of_squares(c10::ScalarType dtype, const void* data, int64_t numel) {
  return add_tiles(2, numel,
      [&](int64_t begin, int64_t count) { return active().sum_tile(dtype, at(data, begin, dtype), count); });
}

double sum_of_powers(c10::ScalarType dtype, const void* data, int64_t numel, double p) {
  ZEROSCHED_CHECK(p > 0 && std::isfinite(p), "the power of a norm is finite and above 0, not ", p, ".");
  return add_tiles(p, numel, [&](int64_t begin, int64_t count) {
    return active().sum_powers_of_tile(p, dtype, at(data, begin, dtype), count);
  });
}

// Weighed tile by tile, as on a GPU.
double inner_product(
    c10::ScalarType grad_dtype, const void* g, const void* z, const void* x, int64_t numel, double weight) {
  const c10::ScalarType state = state_dtype(grad_dtype);
  return add_tiles(1, numel, [&](int64_t begin, int64_t count) {
    return weight * active().inner_product_of_tile(grad_dtype, at(g, begin, grad_dtype), at(z, begin, state),
                        at(x, begin, state), count);
  });
}

double max_abs(c10::ScalarType dtype, const void* data, int64_t numel) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return add_tiles(kInfinity, numel, [&](int64_t begin, int64_t count) {
    return active().sum_powers_of_tile(kInfinity, dtype, at(data, begin, dtype), count);
  });
}

bool copy_gradient(c10::ScalarType to_dtype, void* to, c10::ScalarType from_dtype, const void* from,
    int64_t numel, double weight) {
  ZEROSCHED_CHECK(
      is_supported(to_dtype) && is_supported(from_dtype) && converts_gradient(from_dtype, to_dtype),
      "no kernel copies ", c10::toString(from_dtype), " gradients to ", c10::toString(to_dtype), ".");
  const bool out_of_cache = numel * static_cast<int64_t>(c10::elementSize(to_dtype)) >= kCopyOutOfCacheBytes;
  std::atomic<bool> finite{true};
  for_each_range(numel, [&](int64_t begin, int64_t count) {
    if (!active().copy_gradient(to_dtype, at(to, begin, to_dtype), from_dtype, at(from, begin, from_dtype),
            count, weight, out_of_cache)) {
      finite = false;
    }
  });
  return finite;
}

void clamp_gradient(c10::ScalarType dtype, void* data, int64_t numel, double limit) {
  ZEROSCHED_CHECK(limit >= 0, "gradients are clamped to a limit of at least 0, not ", limit, ".");
  for_each_range(numel, [&](int64_t begin, int64_t count) {
    active().clamp_gradient(dtype, at(data, begin, dtype), count, limit);
  });
}

}  // namespace zerosched::kernels
