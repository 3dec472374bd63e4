// Included once by each variant_*.cpp, which is compiled for its instruction set and defines
// ZEROSCHED_VARIANT. Everything here is internal to that file, and loops are plain, for the compiler to
// vectorise: an inline function of the standard library, shared between files, could end up being the copy
// that needs AVX-512.
#ifndef ZEROSCHED_VARIANT
#error "define ZEROSCHED_VARIANT before including this"
#endif

#include "kernels/cpu/variant.h"
#include "kernels/schedule_free_math.h"

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace zerosched::kernels {
namespace {

struct BFloat16 {
  uint16_t bits;
};

ZEROSCHED_ELEMENT float load(float value) { return value; }
ZEROSCHED_ELEMENT double load(double value) { return value; }
ZEROSCHED_ELEMENT float load(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

ZEROSCHED_ELEMENT void store(float& out, float value) { out = value; }
ZEROSCHED_ELEMENT void store(double& out, double value) { out = value; }
// To nearest, ties to even; NaN stays NaN, with c10::BFloat16's bits.
ZEROSCHED_ELEMENT void store(BFloat16& out, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? 0x7fc0U : rounded);
}

// What y is collected in before it is streamed: a part of the first-level cache.
constexpr int64_t kBlockBytes = KB;

// Writes past the caches what will not be read again soon, sparing the read of the lines before.
void stream_out(void* out, const void* block, int64_t bytes) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(out) % 64 == 0) {
    auto* to = static_cast<__m512i*>(out);
    const auto* from = static_cast<const __m512i*>(block);
    const int64_t vectors = bytes / 64;
    for (int64_t i = 0; i < vectors; ++i) _mm512_stream_si512(to + i, _mm512_load_si512(from + i));
    std::memcpy(to + vectors, from + vectors, static_cast<size_t>(bytes % 64));
    return;
  }
#elif defined(__AVX__)
  if (reinterpret_cast<uintptr_t>(out) % 32 == 0) {
    auto* to = static_cast<__m256i*>(out);
    const auto* from = static_cast<const __m256i*>(block);
    const int64_t vectors = bytes / 32;
    for (int64_t i = 0; i < vectors; ++i) _mm256_stream_si256(to + i, _mm256_load_si256(from + i));
    std::memcpy(to + vectors, from + vectors, static_cast<size_t>(bytes % 32));
    return;
  }
#endif
  std::memcpy(out, block, static_cast<size_t>(bytes));
}

// Streamed stores are not ordered with the ordinary ones that tell other threads of them.
void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

#ifndef PD
#define PD 1024
#endif
// Elements between two rounds of prefetching.
#ifndef CH
#define CH 64
#endif
constexpr int64_t kChunkNumel = CH;
// How far ahead to fetch, in elements: hardware prefetching stops at every page.
constexpr int64_t kAheadNumel = PD;

template <typename T>
ZEROSCHED_ELEMENT void prefetch(const T* from) {
  constexpr int64_t kLineNumel = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < kChunkNumel; i += kLineNumel) __builtin_prefetch(from + kAheadNumel + i);
}

template <bool kDecays, typename Param, typename Grad, typename Real>
ZEROSCHED_ELEMENT void update_elements(
    Param* __restrict y, const Grad* __restrict g, Real* __restrict z, Real* __restrict x, Real* __restrict v,
    int64_t numel, const AdamWScheduleFreeCoefficients<Real>& s) {
  for (int64_t i = 0; i < numel; ++i) {
    Real z_i = z[i];
    Real x_i = x[i];
    Real v_i = v[i];
    const Real y_i = adamw_schedule_free_element<kDecays>(static_cast<Real>(load(g[i])), z_i, x_i, v_i, s);
    z[i] = z_i;
    x[i] = x_i;
    v[i] = v_i;
    store(y[i], y_i);
  }
}

template <bool kDecays, typename Param, typename Grad, typename Real>
void update_chunks(
    Param* __restrict y, const Grad* __restrict g, Real* __restrict z, Real* __restrict x, Real* __restrict v,
    int64_t numel, const AdamWScheduleFreeCoefficients<Real> s) {
  int64_t i = 0;
  for (; i + kChunkNumel <= numel; i += kChunkNumel) {
    if (PD) {prefetch(g + i);
    prefetch(z + i);
    prefetch(x + i);
    prefetch(v + i);}
    update_elements<kDecays>(y + i, g + i, z + i, x + i, v + i, kChunkNumel, s);
  }
  update_elements<kDecays>(y + i, g + i, z + i, x + i, v + i, numel - i, s);
}

template <bool kDecays, typename Param, typename Grad, typename Real>
void update_range(const AdamWScheduleFreeRange& r, const ScheduleFreeScalars& scalars, bool stream) {
  const AdamWScheduleFreeCoefficients<Real> s(scalars);
  auto* y = static_cast<Param*>(r.y);
  const auto* g = static_cast<const Grad*>(r.g);
  auto* z = static_cast<Real*>(r.z);
  auto* x = static_cast<Real*>(r.x);
  auto* v = static_cast<Real*>(r.v);
  if (!stream) {
    update_chunks<kDecays>(y, g, z, x, v, r.numel, s);
    return;
  }
  constexpr int64_t kBlockNumel = kBlockBytes / static_cast<int64_t>(sizeof(Param));
  alignas(64) Param block[kBlockNumel];
  for (int64_t i = 0; i < r.numel; i += kBlockNumel) {
    const int64_t numel = r.numel - i < kBlockNumel ? r.numel - i : kBlockNumel;
    update_chunks<kDecays>(block, g + i, z + i, x + i, v + i, numel, s);
    stream_out(y + i, block, numel * static_cast<int64_t>(sizeof(Param)));
  }
  finish_streaming();
}

template <typename Param, typename Grad, typename Real>
void update(const AdamWScheduleFreeRange& range, const ScheduleFreeScalars& scalars, bool stream) {
  if (scalars.weight_decay != 0) {
    update_range<true, Param, Grad, Real>(range, scalars, stream);
  } else {
    update_range<false, Param, Grad, Real>(range, scalars, stream);
  }
}

void adamw_schedule_free_range(
    const AdamWScheduleFreeRange& range, const ScheduleFreeScalars& scalars, bool stream) {
  if (range.param_dtype == c10::ScalarType::Double) {
    update<double, double, double>(range, scalars, stream);
  } else if (range.param_dtype == c10::ScalarType::Float) {
    update<float, float, float>(range, scalars, stream);
  } else if (range.grad_dtype == c10::ScalarType::BFloat16) {
    update<BFloat16, BFloat16, float>(range, scalars, stream);
  } else {
    update<BFloat16, float, float>(range, scalars, stream);
  }
}

template <typename Param, typename Real>
void interpolate_elements(
    Param* __restrict out, const Real* __restrict x, const Real* __restrict z, double weight, int64_t numel) {
  const Interpolation<Real> how(weight);
  for (int64_t i = 0; i < numel; ++i) store(out[i], interpolate_element(x[i], z[i], how));
}

void interpolate_range(
    c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight, int64_t numel) {
  if (param_dtype == c10::ScalarType::Double) {
    interpolate_elements(
        static_cast<double*>(out), static_cast<const double*>(x), static_cast<const double*>(z), weight, numel);
  } else if (param_dtype == c10::ScalarType::Float) {
    interpolate_elements(
        static_cast<float*>(out), static_cast<const float*>(x), static_cast<const float*>(z), weight, numel);
  } else {
    interpolate_elements(
        static_cast<BFloat16*>(out), static_cast<const float*>(x), static_cast<const float*>(z), weight, numel);
  }
}

// Sixteen running sums whatever the width of a vector, so that every instruction set adds in the same order.
template <typename Value>
double sum_of_squares_of(const Value* data, int64_t numel) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  const int64_t whole = numel / kSums * kSums;
  for (int64_t i = 0; i < whole; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) {
      const double value = static_cast<double>(load(data[i + j]));
      sums[j] += value * value;
    }
  }
  for (int64_t i = whole; i < numel; ++i) {
    const double value = static_cast<double>(load(data[i]));
    sums[i - whole] += value * value;
  }
  for (int64_t width = kSums / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) sums[j] += sums[j + width];
  }
  return sums[0];
}

double sum_of_squares_range(c10::ScalarType dtype, const void* data, int64_t numel) {
  if (dtype == c10::ScalarType::Double) return sum_of_squares_of(static_cast<const double*>(data), numel);
  if (dtype == c10::ScalarType::Float) return sum_of_squares_of(static_cast<const float*>(data), numel);
  return sum_of_squares_of(static_cast<const BFloat16*>(data), numel);
}

}  // namespace

extern const Variant ZEROSCHED_VARIANT;
const Variant ZEROSCHED_VARIANT = {
    ZEROSCHED_VARIANT_NAME, adamw_schedule_free_range, interpolate_range, sum_of_squares_range};

}  // namespace zerosched::kernels
