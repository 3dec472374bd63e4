#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

// What kernels share. This and the other .cuh files are C++ but for the launch, so that any C++ compiler can
// build them where a cuda_runtime.h supplies __global__, threadIdx and their like.
#ifdef __CUDACC__
#define ZEROSCHED_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(__VA_ARGS__)
#endif

namespace zerosched::kernels::cuda {

inline constexpr int kWarpThreads = 32;

constexpr int log2_of(int64_t power_of_2) {
  int result = 0;
  for (; power_of_2 > 1; power_of_2 /= 2) ++result;
  return result;
}

/// Elements that are moved by 16-byte accesses, more than one where they are more than 16 bytes; 8 bytes can be loaded.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? 8 : 16) Pack {
  static_assert(
      sizeof(T) * kCount == 8 || sizeof(T) * kCount % 16 == 0, "a pack is a whole number of accesses");
  T values[kCount];
};

struct __attribute__((aligned(16), may_alias)) Words {
  uint32_t word[4];
};
struct __attribute__((aligned(8), may_alias)) TwoWords {
  uint32_t word[2];
};

// Spelled out for the GPU, because compilers take ordinary accesses of this width apart, and move loads to
// where their values are used; volatile keeps all loads of a pack together, in flight at once.
__device__ __forceinline__ Words load_words(const Words* from) {
#ifdef __CUDA_ARCH__
  Words w;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3])
               : "l"(__cvta_generic_to_global(from)));
  return w;
#else
  return *from;
#endif
}

__device__ __forceinline__ TwoWords load_words(const TwoWords* from) {
#ifdef __CUDA_ARCH__
  TwoWords w;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(w.word[0]), "=r"(w.word[1])
               : "l"(__cvta_generic_to_global(from)));
  return w;
#else
  return *from;
#endif
}

__device__ __forceinline__ void store_words(Words* to, const Words& w) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "st.global.v4.u32 [%0], {%1, %2, %3, %4};"
      :
      : "l"(__cvta_generic_to_global(to)), "r"(w.word[0]), "r"(w.word[1]), "r"(w.word[2]), "r"(w.word[3])
      : "memory");
#else
  *to = w;
#endif
}

template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> load_pack(const T* from) {
  using Access = std::conditional_t<sizeof(Pack<T, kCount>) == 8, TwoWords, Words>;
  Access words[sizeof(Pack<T, kCount>) / sizeof(Access)];
#pragma unroll
  for (unsigned i = 0; i < sizeof(words) / sizeof(Access); ++i)
    words[i] = load_words(reinterpret_cast<const Access*>(from) + i);
  Pack<T, kCount> pack;
  std::memcpy(&pack, words, sizeof(pack));
  return pack;
}

template <int kCount, typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, kCount>& pack) {
  Words words[sizeof(pack) / 16];
  std::memcpy(words, &pack, sizeof(pack));
#pragma unroll
  for (unsigned i = 0; i < sizeof(words) / 16; ++i) store_words(reinterpret_cast<Words*>(to) + i, words[i]);
}

/// The same pointer. Of one that was itself read from memory, a GPU's compiler cannot see that it points to
/// global memory, and would use slower, generic accesses.
template <typename T>
__device__ __forceinline__ const T* in_global_memory(const void* pointer) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(pointer));
#endif
  return static_cast<const T*>(pointer);
}

__device__ __forceinline__ bool is_pack_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

/// A block's shared memory for one T, whose constructor one thread calls; shared variables cannot have any.
template <typename T>
struct SharedStorage {
  alignas(T) unsigned char bytes[sizeof(T)];

  template <typename... Arguments>
  __device__ __forceinline__ void construct(const Arguments&... arguments) {
    new (bytes) T(arguments...);
  }
  __device__ __forceinline__ const T& value() const { return *reinterpret_cast<const T*>(bytes); }
};

}  // namespace zerosched::kernels::cuda
