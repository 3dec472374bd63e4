#pragma once

#include "kernels/device_memory.h"
#include "support/median.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// How long a GPU takes, for benchmarks.
namespace zerosched::testing {

class TimedEvent {
 public:
  TimedEvent() { ZEROSCHED_CHECK_CUDA(cudaEventCreate(&event_)); }
  ~TimedEvent() { cudaEventDestroy(event_); }
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Seconds between two points of the stream, of the median of `repetitions` runs of what `work` queues in between. A few
/// runs before those do not count: the first loads the kernel, and the clocks rise.
inline double median_seconds(cudaStream_t stream, int repetitions, const std::function<void()>& work) {
  constexpr int kWarmUp = 3;
  const TimedEvent start, end;
  std::vector<double> seconds;
  for (int i = -kWarmUp; i < repetitions; ++i) {
    ZEROSCHED_CHECK_CUDA(cudaEventRecord(start, stream));
    work();
    ZEROSCHED_CHECK_CUDA(cudaEventRecord(end, stream));
    ZEROSCHED_CHECK_CUDA(cudaEventSynchronize(end));
    float milliseconds = 0;
    ZEROSCHED_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, start, end));
    if (i >= 0) seconds.push_back(milliseconds / 1e3);
  }
  return median(std::move(seconds));
}

/// Of main(): what `run` returns; 77, and the reason, where there is no GPU; 1, and the message, if it throws.
inline int exit_code_on_gpu(const char* program, const std::function<int()>& run) {
  if (const std::string reason = kernels::testing::why_no_gpu(); !reason.empty()) {
    std::printf("SKIPPED: %s\n", reason.c_str());
    return 77;
  }
  try {
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", program, error.what());
    return 1;
  }
}

/// Bytes that can be allocated now.
inline size_t free_gpu_bytes() {
  size_t free = 0, total = 0;
  ZEROSCHED_CHECK_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

}  // namespace zerosched::testing
