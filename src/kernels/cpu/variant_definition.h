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

// What is prefetched, computed and streamed at a time.
constexpr int64_t kChunkNumel = 64;
// How far ahead of use memory is asked for: hardware prefetching stops at the end of every page.
constexpr int64_t kAheadBytes = 2048;

template <typename T>
ZEROSCHED_ELEMENT void prefetch_chunk(const T* chunk) {
  const auto* ahead = reinterpret_cast<const char*>(chunk) + kAheadBytes;
  for (int64_t byte = 0; byte < kChunkNumel * static_cast<int64_t>(sizeof(T)); byte += 64) {
    __builtin_prefetch(ahead + byte);
  }
}

#if defined(__AVX512F__)
using Vector = __m512i;
ZEROSCHED_ELEMENT void stream_vector(Vector* to, const Vector* from) {
  _mm512_stream_si512(to, _mm512_load_si512(from));
}
#elif defined(__AVX2__)
using Vector = __m256i;
ZEROSCHED_ELEMENT void stream_vector(Vector* to, const Vector* from) {
  _mm256_stream_si256(to, _mm256_load_si256(from));
}
#elif defined(__SSE2__)
using Vector = __m128i;
ZEROSCHED_ELEMENT void stream_vector(Vector* to, const Vector* from) {
  _mm_stream_si128(to, _mm_load_si128(from));
}
#endif

// Writes a chunk past the caches, which spares the read of its lines before. `chunk` is aligned to 64 bytes.
template <typename T>
ZEROSCHED_ELEMENT void stream_chunk(T* out, const T* chunk) {
#if defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(out) % sizeof(Vector) == 0) {
    constexpr int64_t kVectors = kChunkNumel * static_cast<int64_t>(sizeof(T)) / static_cast<int64_t>(sizeof(Vector));
    for (int64_t i = 0; i < kVectors; ++i) {
      stream_vector(reinterpret_cast<Vector*>(out) + i, reinterpret_cast<const Vector*>(chunk) + i);
    }
    return;
  }
#endif
  std::memcpy(out, chunk, static_cast<size_t>(kChunkNumel) * sizeof(T));
}

// Streamed stores are not ordered with the ordinary ones that tell other threads of them.
ZEROSCHED_ELEMENT void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
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
void update_range(const AdamWScheduleFreeRange& r, const ScheduleFreeScalars& scalars, bool out_of_cache) {
  const AdamWScheduleFreeCoefficients<Real> s(scalars);
  auto* y = static_cast<Param*>(r.y);
  const auto* g = static_cast<const Grad*>(r.g);
  auto* z = static_cast<Real*>(r.z);
  auto* x = static_cast<Real*>(r.x);
  auto* v = static_cast<Real*>(r.v);
  if (!out_of_cache) {
    update_elements<kDecays>(y, g, z, x, v, r.numel, s);
    return;
  }
  alignas(64) Param chunk[kChunkNumel];
  int64_t i = 0;
  for (; i + kChunkNumel <= r.numel; i += kChunkNumel) {
    prefetch_chunk(g + i);
    prefetch_chunk(z + i);
    prefetch_chunk(x + i);
    prefetch_chunk(v + i);
    update_elements<kDecays>(chunk, g + i, z + i, x + i, v + i, kChunkNumel, s);
    stream_chunk(y + i, chunk);
  }
  update_elements<kDecays>(y + i, g + i, z + i, x + i, v + i, r.numel - i, s);
  finish_streaming();
}

template <typename Param, typename Grad, typename Real>
void update(const AdamWScheduleFreeRange& range, const ScheduleFreeScalars& scalars, bool out_of_cache) {
  if (scalars.weight_decay != 0) {
    update_range<true, Param, Grad, Real>(range, scalars, out_of_cache);
  } else {
    update_range<false, Param, Grad, Real>(range, scalars, out_of_cache);
  }
}

void adamw_schedule_free_range(
    const AdamWScheduleFreeRange& range, const ScheduleFreeScalars& scalars, bool out_of_cache) {
  if (range.param_dtype == c10::ScalarType::Double) {
    update<double, double, double>(range, scalars, out_of_cache);
  } else if (range.param_dtype == c10::ScalarType::Float) {
    update<float, float, float>(range, scalars, out_of_cache);
  } else if (range.grad_dtype == c10::ScalarType::BFloat16) {
    update<BFloat16, BFloat16, float>(range, scalars, out_of_cache);
  } else {
    update<BFloat16, float, float>(range, scalars, out_of_cache);
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
