// Included once by each variant_*.cpp, which is compiled for its instruction set and defines
// ZEROSCHED_VARIANT. Everything here is internal to that file, and loops are plain, for the compiler to
// vectorise: an inline function of the standard library, shared between files, could end up being the copy
// that needs AVX-512.
#ifndef ZEROSCHED_VARIANT
#error "define ZEROSCHED_VARIANT before including this"
#endif

#include "kernels/cpu/variant.h"
#include "kernels/math.h"
#include "kernels/rules/adamw.h"
#include "kernels/rules/adamw_schedule_free.h"
#include "kernels/rules/sgd.h"
#include "kernels/rules/sgd_schedule_free.h"

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

template <typename UpdateRule, typename Param, typename Grad, typename Real>
ZEROSCHED_ELEMENT void update_elements(
    Param* __restrict y, const Grad* __restrict g, Real* __restrict a, Real* __restrict b, Real* __restrict c,
    int64_t numel, const typename UpdateRule::template Coefficients<Real>& s) {
  constexpr bool kHasThird = UpdateRule::kStateTensors > 2;
  for (int64_t i = 0; i < numel; ++i) {
    Real a_i = a[i];
    Real b_i = b[i];
    Real c_i = kHasThird ? c[i] : Real(0);
    const Real y_i = UpdateRule::apply(static_cast<Real>(load(g[i])), a_i, b_i, c_i, s);
    a[i] = a_i;
    b[i] = b_i;
    if (kHasThird) c[i] = c_i;
    store(y[i], y_i);
  }
}

template <typename UpdateRule, typename Param, typename Grad, typename Real>
void update_range(const UpdateRange& r, const StepScalars& scalars, bool out_of_cache) {
  constexpr bool kHasThird = UpdateRule::kStateTensors > 2;
  const typename UpdateRule::template Coefficients<Real> s(scalars);
  auto* y = static_cast<Param*>(r.y);
  const auto* g = static_cast<const Grad*>(r.g);
  auto* a = static_cast<Real*>(r.state[0]);
  auto* b = static_cast<Real*>(r.state[1]);
  auto* c = static_cast<Real*>(r.state[2]);
  if (!out_of_cache) {
    update_elements<UpdateRule>(y, g, a, b, c, r.numel, s);
    return;
  }
  alignas(64) Param chunk[kChunkNumel];
  int64_t i = 0;
  for (; i + kChunkNumel <= r.numel; i += kChunkNumel) {
    prefetch_chunk(g + i);
    prefetch_chunk(a + i);
    prefetch_chunk(b + i);
    if (kHasThird) prefetch_chunk(c + i);
    update_elements<UpdateRule>(chunk, g + i, a + i, b + i, kHasThird ? c + i : c, kChunkNumel, s);
    stream_chunk(y + i, chunk);
  }
  update_elements<UpdateRule>(y + i, g + i, a + i, b + i, kHasThird ? c + i : c, r.numel - i, s);
  finish_streaming();
}

template <typename UpdateRule>
void update_by(const UpdateRange& range, const StepScalars& scalars, bool out_of_cache) {
  if (range.param_dtype == c10::ScalarType::Double) {
    update_range<UpdateRule, double, double, double>(range, scalars, out_of_cache);
  } else if (range.param_dtype == c10::ScalarType::Float) {
    update_range<UpdateRule, float, float, float>(range, scalars, out_of_cache);
  } else if (range.grad_dtype == c10::ScalarType::BFloat16) {
    update_range<UpdateRule, BFloat16, BFloat16, float>(range, scalars, out_of_cache);
  } else {
    update_range<UpdateRule, BFloat16, float, float>(range, scalars, out_of_cache);
  }
}

void update_by_rule(Rule rule, const UpdateRange& range, const StepScalars& scalars, bool out_of_cache) {
  switch (rule) {
    case Rule::adamw_schedule_free:
      if (!scalars.adaptive) return update_by<AdamWScheduleFreeRule<true, false>>(range, scalars, out_of_cache);
      if (scalars.weight_decay != 0) return update_by<AdamWScheduleFreeRule<true>>(range, scalars, out_of_cache);
      return update_by<AdamWScheduleFreeRule<false>>(range, scalars, out_of_cache);
    case Rule::sgd_schedule_free: return update_by<SGDScheduleFreeRule>(range, scalars, out_of_cache);
    case Rule::adamw: return update_by<AdamWRule>(range, scalars, out_of_cache);
    case Rule::sgd:
      if (scalars.nesterov) return update_by<SGDRule<true>>(range, scalars, out_of_cache);
      return update_by<SGDRule<false>>(range, scalars, out_of_cache);
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
    ZEROSCHED_VARIANT_NAME, update_by_rule, interpolate_range, sum_of_squares_range};

}  // namespace zerosched::kernels
