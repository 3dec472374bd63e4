#pragma once

#include "bench/gpu_timing.h"
#include "support/median.h"

#include <c10/core/Device.h>
#include <c10/cuda/CUDAStream.h>

#include <chrono>
#include <functional>
#include <vector>

// The time of what LibTorch runs on a device, and of the host that queues it.
namespace zerosched::testing {

/// Until the device is done with all that was queued.
inline void synchronize(c10::Device device) {
  if (device.is_cuda()) ZEROSCHED_CHECK_CUDA(cudaDeviceSynchronize());
}

inline double seconds_of_host(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Notes when the device gets to a point of the current stream; on the CPU, when the host does.
class Stopwatch {
 public:
  Stopwatch(c10::Device device, size_t points) : device_(device), times_(points) {
    if (device.is_cuda()) events_ = std::vector<TimedEvent>(points);
  }

  void note(size_t point) const {
    if (device_.is_cuda()) {
      const auto stream = c10::cuda::getCurrentCUDAStream(device_.index());
      ZEROSCHED_CHECK_CUDA(cudaEventRecord(events_[point], stream.stream()));
    }
    times_[point] = std::chrono::steady_clock::now();
  }

  /// Once the device is done.
  double seconds(size_t from, size_t to) const {
    if (!device_.is_cuda()) return std::chrono::duration<double>(times_[to] - times_[from]).count();
    float milliseconds = 0;
    ZEROSCHED_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, events_[from], events_[to]));
    return milliseconds / 1e3;
  }

 private:
  c10::Device device_;
  mutable std::vector<std::chrono::steady_clock::time_point> times_;
  std::vector<TimedEvent> events_;
};

}  // namespace zerosched::testing
