// A part of variant_definition.h, which says what its loops may use.
#pragma once

#include "kernels/math.h"

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

// NOLINTBEGIN(misc-definitions-in-headers): internal to each variant on purpose
namespace zerosched::kernels {
namespace {

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

}  // namespace
}  // namespace zerosched::kernels
// NOLINTEND(misc-definitions-in-headers)
