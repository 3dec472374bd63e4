// What both kinds of threads share, and the runtime's functions.
#include "cuda_runtime.h"

#include "threads.h"

#include <cstdio>
#include <cstdlib>

thread_local dim3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_shim {
namespace {

constexpr int64_t kMaxThreads = 1024;
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

int multiprocessors = 2;
cudaError_t last_error = cudaSuccess;
uint64_t exchange[kMaxThreads];
std::vector<unsigned> only_blocks;

}  // namespace

void set_multiprocessors(int count) { multiprocessors = count; }

void run_only_blocks(const std::vector<unsigned>& blocks) { only_blocks = blocks; }

void* exchange_slot(unsigned thread) { return &exchange[thread]; }

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "cuda_shim: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
  std::abort();
}

void launch(int64_t blocks, int64_t threads, cudaStream_t, const std::function<void()>& kernel) {
  if (blocks < 1 || blocks > kMaxBlocks || threads < 1 || threads > kMaxThreads) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  if (only_blocks.empty()) {
    for (unsigned block = 0; block < gridDim.x; ++block) run_block(block, blockDim.x, kernel);
  }
  for (const unsigned block : only_blocks) {
    if (block < gridDim.x) run_block(block, blockDim.x, kernel);
  }
}

}  // namespace cuda_shim

cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_shim::last_error;
  cuda_shim::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidConfiguration";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = cuda_shim::multiprocessors;
  return cudaSuccess;
}
