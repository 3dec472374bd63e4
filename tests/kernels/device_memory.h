#pragma once

#include "kernels/ranges.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

// GPU memory for tests and benchmarks. Every call's result is looked at.
namespace zerosched::kernels::testing {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
#define ZEROSCHED_CHECK_CUDA(call) ::zerosched::kernels::testing::check_cuda(call, #call)

/// Why nothing can run on a GPU here; empty if it can.
inline std::string why_no_gpu() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    return std::string("no GPU: cudaGetDeviceCount says ") + cudaGetErrorString(error);
  return count == 0 ? "no GPU: cudaGetDeviceCount finds none" : "";
}

/// Bytes on the current device, on 256 bytes and more; an offset in bytes from there on request.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes, size_t offset = 0) : bytes_(bytes), offset_(offset) {
    ZEROSCHED_CHECK_CUDA(cudaMalloc(&memory_, bytes + offset + 1));
  }
  explicit DeviceMemory(const Array& array, size_t offset = 0) : DeviceMemory(array.byte_count(), offset) {
    write(array.data());
  }
  ~DeviceMemory() { cudaFree(memory_); }
  DeviceMemory(DeviceMemory&& other) noexcept
      : memory_(other.memory_), bytes_(other.bytes_), offset_(other.offset_) {
    other.memory_ = nullptr;
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <typename T = void>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(memory_) + offset_);
  }
  // Both are there when they return, for any stream: cudaMemcpy from pageable memory may return before the device has
  // it, cudaMemset does, and a stream that is not blocking waits for neither.
  void write(const void* from) const {
    ZEROSCHED_CHECK_CUDA(cudaMemcpy(data(), from, bytes_, cudaMemcpyHostToDevice));
    ZEROSCHED_CHECK_CUDA(cudaDeviceSynchronize());
  }
  void fill(int byte) const {
    ZEROSCHED_CHECK_CUDA(cudaMemset(data(), byte, bytes_));
    ZEROSCHED_CHECK_CUDA(cudaDeviceSynchronize());
  }
  void read(void* to) const { ZEROSCHED_CHECK_CUDA(cudaMemcpy(to, data(), bytes_, cudaMemcpyDeviceToHost)); }

 private:
  void* memory_ = nullptr;
  size_t bytes_;
  size_t offset_;
};

class CudaStream {
 public:
  CudaStream() { ZEROSCHED_CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~CudaStream() { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  operator cudaStream_t() const { return stream_; }
  void wait() const { ZEROSCHED_CHECK_CUDA(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace zerosched::kernels::testing
