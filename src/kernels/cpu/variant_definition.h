// Included once by each variant_*.cpp, which is compiled for its instruction set and defines
// ZEROSCHED_VARIANT. Everything here is internal to that file, and loops are plain, for the compiler to
// vectorise: an inline function of the standard library, shared between files, could end up being the copy
// that needs AVX-512.
#ifndef ZEROSCHED_VARIANT
#error "define ZEROSCHED_VARIANT before including this"
#endif

#include "kernels/cpu/variant.h"
#include "kernels/element_types.h"
#include "kernels/math.h"
#include "kernels/rules/select.h"
#include "kernels/summation.h"

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

// NOLINTBEGIN(misc-definitions-in-headers): it is a part of the one file that includes it
namespace zerosched::kernels {
namespace {

// What is prefetched, computed and streamed at a time: 128 bytes of every state tensor, of which compilers
// unroll the loop whole.
template <typename Real>
constexpr int64_t kChunkNumel = 128 / static_cast<int64_t>(sizeof(Real));
// How far ahead of use memory is asked for: hardware prefetching stops at the end of every page.
constexpr int64_t kAheadBytes = 4096;

template <int64_t kNumel, typename T>
ZEROSCHED_ELEMENT void prefetch_chunk(const T* chunk) {
  const auto* ahead = reinterpret_cast<const char*>(chunk) + kAheadBytes;
  for (int64_t byte = 0; byte < kNumel * static_cast<int64_t>(sizeof(T)); byte += 64) {
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
template <int64_t kNumel, typename T>
ZEROSCHED_ELEMENT void stream_chunk(T* out, const T* chunk) {
#if defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(out) % sizeof(Vector) == 0) {
    constexpr int64_t kVectors =
        kNumel * static_cast<int64_t>(sizeof(T)) / static_cast<int64_t>(sizeof(Vector));
    static_assert(kVectors > 0, "a chunk is at least a vector");
    for (int64_t i = 0; i < kVectors; ++i) {
      stream_vector(reinterpret_cast<Vector*>(out) + i, reinterpret_cast<const Vector*>(chunk) + i);
    }
    return;
  }
#endif
  std::memcpy(out, chunk, static_cast<size_t>(kNumel) * sizeof(T));
}

// Streamed stores are not ordered with the ordinary ones that tell other threads of them.
ZEROSCHED_ELEMENT void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <typename UpdateRule, typename Param, typename Grad, typename Real, typename Coefficients>
ZEROSCHED_ELEMENT void update_elements(Param* __restrict y, const Grad* __restrict g, Real* __restrict a,
    Real* __restrict b, Real* __restrict c, int64_t numel, const Coefficients& s) {
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

template <typename UpdateRule, typename Param, typename Grad, typename Real, typename Coefficients>
void update_with(const Coefficients& s, const UpdateRange& r, bool out_of_cache) {
  constexpr bool kHasThird = UpdateRule::kStateTensors > 2;
  auto* y = static_cast<Param*>(r.y);
  const auto* g = static_cast<const Grad*>(r.g);
  auto* a = static_cast<Real*>(r.state[0]);
  auto* b = static_cast<Real*>(r.state[1]);
  auto* c = static_cast<Real*>(r.state[2]);
  if (!out_of_cache) {
    update_elements<UpdateRule>(y, g, a, b, c, r.numel, s);
    return;
  }
  constexpr int64_t kNumel = kChunkNumel<Real>;
  alignas(64) Param chunk[kNumel];
  int64_t i = 0;
  for (; i + kNumel <= r.numel; i += kNumel) {
    prefetch_chunk<kNumel>(g + i);
    prefetch_chunk<kNumel>(a + i);
    prefetch_chunk<kNumel>(b + i);
    if (kHasThird) prefetch_chunk<kNumel>(c + i);
    update_elements<UpdateRule>(chunk, g + i, a + i, b + i, kHasThird ? c + i : c, kNumel, s);
    stream_chunk<kNumel>(y + i, chunk);
  }
  update_elements<UpdateRule>(y + i, g + i, a + i, b + i, kHasThird ? c + i : c, r.numel - i, s);
  finish_streaming();
}

template <typename UpdateRule, typename Param, typename Grad, typename Real>
void update_range(const UpdateRange& range, const StepScalars& scalars, bool out_of_cache) {
  if constexpr (UpdateRule::kInterpolates) {
    using Near = InterpolationNearA<Real>;
    if (Near::covers(scalars.y_weight_before) && Near::covers(scalars.c) && Near::covers(scalars.y_weight)) {
      const typename UpdateRule::template Coefficients<Real, InterpolationNearA> s(scalars);
      return update_with<UpdateRule, Param, Grad, Real>(s, range, out_of_cache);
    }
  }
  const typename UpdateRule::template Coefficients<Real> s(scalars);
  update_with<UpdateRule, Param, Grad, Real>(s, range, out_of_cache);
}

template <typename UpdateRule>
void update_by(const UpdateRange& range, const StepScalars& scalars, bool out_of_cache) {
  const bool narrow_gradients = range.grad_dtype == range.param_dtype;
  switch (range.param_dtype) {
    case c10::ScalarType::Double:
      return update_range<UpdateRule, double, double, double>(range, scalars, out_of_cache);
    case c10::ScalarType::BFloat16:
      if (narrow_gradients)
        return update_range<UpdateRule, BFloat16, BFloat16, float>(range, scalars, out_of_cache);
      return update_range<UpdateRule, BFloat16, float, float>(range, scalars, out_of_cache);
    case c10::ScalarType::Half:
      if (narrow_gradients)
        return update_range<UpdateRule, Float16, Float16, float>(range, scalars, out_of_cache);
      return update_range<UpdateRule, Float16, float, float>(range, scalars, out_of_cache);
    default:
      return update_range<UpdateRule, float, float, float>(range, scalars, out_of_cache);
  }
}

void update_by_rule(Rule rule, const UpdateRange& range, const StepScalars& scalars, bool out_of_cache) {
  with_rule(rule, scalars, [&](auto chosen) { update_by<decltype(chosen)>(range, scalars, out_of_cache); });
}

template <typename Param, typename Real>
void interpolate_elements(
    Param* __restrict out, const Real* __restrict x, const Real* __restrict z, double weight, int64_t numel) {
  const Interpolation<Real> how(weight);
  for (int64_t i = 0; i < numel; ++i) store(out[i], interpolate_element(x[i], z[i], how));
}

void interpolate_range(
    c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight, int64_t numel) {
  const auto run = [&](auto param) {
    using Param = decltype(param);
    using Real = typename StateOf<Param>::type;
    interpolate_elements(
        static_cast<Param*>(out), static_cast<const Real*>(x), static_cast<const Real*>(z), weight, numel);
  };
  switch (param_dtype) {
    case c10::ScalarType::Double:
      return run(double());
    case c10::ScalarType::BFloat16:
      return run(BFloat16());
    case c10::ScalarType::Half:
      return run(Float16());
    default:
      return run(float());
  }
}

template <typename Value>
ZEROSCHED_ELEMENT double sum_group(const Value* data, int64_t numel) {
  double columns[kSumColumns] = {};
  const int64_t whole = numel / kSumColumns * kSumColumns;
  for (int64_t i = 0; i < whole; i += kSumColumns) {
    for (int64_t j = 0; j < kSumColumns; ++j) {
      const double value = static_cast<double>(load(data[i + j]));
      columns[j] = fused_multiply_add(value, value, columns[j]);
    }
  }
  for (int64_t i = whole; i < numel; ++i) {
    const double value = static_cast<double>(load(data[i]));
    columns[i - whole] = fused_multiply_add(value, value, columns[i - whole]);
  }
  return add_pairwise<kSumColumns>(columns);
}

template <typename Value>
double sum_tile(const Value* data, int64_t numel) {
  double groups[kSumGroups] = {};
  for (int64_t g = 0; g * kSumGroupNumel < numel; ++g) {
    const int64_t begin = g * kSumGroupNumel;
    groups[g] = sum_group(data + begin, numel - begin < kSumGroupNumel ? numel - begin : kSumGroupNumel);
  }
  return add_pairwise<kSumGroups>(groups);
}

double sum_tile_of(c10::ScalarType dtype, const void* data, int64_t numel) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return sum_tile(static_cast<const double*>(data), numel);
    case c10::ScalarType::BFloat16:
      return sum_tile(static_cast<const BFloat16*>(data), numel);
    case c10::ScalarType::Half:
      return sum_tile(static_cast<const Float16*>(data), numel);
    default:
      return sum_tile(static_cast<const float*>(data), numel);
  }
}

}  // namespace

extern const Variant ZEROSCHED_VARIANT;
const Variant ZEROSCHED_VARIANT = {ZEROSCHED_VARIANT_NAME, update_by_rule, interpolate_range, sum_tile_of};

}  // namespace zerosched::kernels
// NOLINTEND(misc-definitions-in-headers)
