#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

// Stands in for CUDA's header of this name, so that a C++ compiler builds the .cuh and .cu files for the CPU,
// with its sanitizers. Blocks run one after another; the threads of a block are fibers, which change at
// barriers and shuffles in an order that a seed chooses, or with CUDA_SHIM_OS_THREADS threads of the system,
// for TSan. What it cannot show: memory ordering between blocks, streams, and the code a GPU's compiler
// makes.

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static
#define ZEROSCHED_LAUNCH(kernel, blocks, threads, stream, ...) \
  cuda_shim::launch(blocks, threads, stream, [&] { kernel(__VA_ARGS__); })

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

extern thread_local dim3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

namespace cuda_shim {

/// 0: threads run in their order between barriers; else shuffled.
void set_order(uint32_t seed);
/// What cudaDeviceGetAttribute says; few, so that blocks go around their loops.
void set_multiprocessors(int count);

/// Launches run these blocks and leave out the others; none: all.
void run_only_blocks(const std::vector<unsigned>& blocks);

void launch(int64_t blocks, int64_t threads, cudaStream_t stream, const std::function<void()>& kernel);
void wait_for_block();
void wait_for_warp();
/// 8 bytes that a thread of this block shows to its warp.
void* exchange_slot(unsigned thread);
void require(bool condition, const char* what);

}  // namespace cuda_shim

inline void __syncthreads() { cuda_shim::wait_for_block(); }

inline int atomicOr(int* address, int value) { return __atomic_fetch_or(address, value, __ATOMIC_RELAXED); }

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  static_assert(sizeof(T) <= 8, "what an exchange slot holds");
  cuda_shim::require(mask == 0xffffffffU, "shuffles of part of a warp are not modelled");
  const unsigned lane = threadIdx.x % static_cast<unsigned>(width);
  const unsigned from = lane + delta < static_cast<unsigned>(width) ? threadIdx.x + delta : threadIdx.x;
  std::memcpy(cuda_shim::exchange_slot(threadIdx.x), &value, sizeof(T));
  cuda_shim::wait_for_warp();
  std::memcpy(&value, cuda_shim::exchange_slot(from), sizeof(T));
  cuda_shim::wait_for_warp();
  return value;
}
