// Kernels that machine_code_test.py must reject, but for the first, each for one reason. They move x and g in
// and x out: 12 bytes an element.
#include <cstdint>

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float4 sum(float4 a, float4 b, float scale) {
  return {a.x + scale * b.x, a.y + scale * b.y, a.z + scale * b.z, a.w + scale * b.w};
}

}  // namespace

__global__ void good(float4* x, const float4* g, float scale, int64_t packs) {
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) x[i] = sum(x[i], g[i], scale);
}

__global__ void narrow(float4* x, const float* g, float scale, int64_t packs) {
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
    x[i] = sum(x[i], {g[4 * i], g[4 * i + 1], g[4 * i + 2], g[4 * i + 3]}, scale);
  }
}

__global__ void extra_bytes(float4* x, const float4* g, const float4* h, float scale, int64_t packs) {
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) x[i] = sum(sum(x[i], g[i], scale), h[i], scale);
}

__global__ void slow(float4* x, const float4* g, float scale, int64_t packs) {
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
    float4 value = x[i];
    const float4 gradient = g[i];
#pragma unroll
    for (int repeat = 0; repeat < 64; ++repeat) value = sum(value, gradient, scale * value.y);
    x[i] = value;
  }
}

// 64 values that the loop needs at once, in 32 registers.
__global__ void __launch_bounds__(1024, 2) spills(float4* x, const float4* g, float scale, int64_t packs) {
  float kept[64];
#pragma unroll
  for (int k = 0; k < 64; ++k) kept[k] = scale * static_cast<float>(clock());
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
    float4 value = sum(x[i], g[i], scale);
#pragma unroll
    for (int k = 0; k < 64; ++k) kept[k] = kept[k] * value.x + value.y;
    value.z += kept[0];
    x[i] = value;
  }
  float all = 0;
#pragma unroll
  for (int k = 0; k < 64; ++k) all += kept[k];
  x[0].x = all;
}
