#pragma once

#include "device/runtime.h"

#include <ATen/core/Tensor.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace zerosched::detail {

/// What the collectives of one communicator share to get tensors of one device through host memory: a stream
/// in each direction, and pinned buffers, which are slow to make and therefore kept for the next collective.
class StagingArea {
 public:
  StagingArea(device::Runtime& runtime, int device);
  ~StagingArea();
  StagingArea(const StagingArea&) = delete;
  StagingArea& operator=(const StagingArea&) = delete;

  device::Runtime& runtime() const { return runtime_; }
  int device() const { return device_; }
  /// Makes the device that of the progress thread, if that calls: whatever it asks CUDA is then asked there.
  void begin_thread();
  device::Stream to_host() const { return to_host_; }
  device::Stream to_device() const { return to_device_; }

  /// At least `byte_count` bytes of pinned memory; the smallest free buffer that will do.
  void* take(int64_t byte_count);
  void give_back(void* buffer);

 private:
  device::Runtime& runtime_;
  int device_;
  device::Stream to_host_, to_device_;
  std::mutex mutex_;
  std::map<void*, int64_t> sizes_;      // under mutex_, of all buffers
  std::multimap<int64_t, void*> free_;  // under mutex_, by size
};

/// A tensor of a collective, and which of its bytes go to the host before and whether all come back after.
struct StagedTensor {
  at::Tensor tensor;
  int64_t first_byte_in = 0;
  int64_t bytes_in = 0;
  bool comes_back = false;
};

/// The way of one collective's tensors to the host and back.
class Staging {
 public:
  /// Queues the copies to the host, behind what the current stream holds now.
  Staging(std::shared_ptr<StagingArea> area, std::vector<StagedTensor> tensors);
  /// The collective has ended, or MpiGroup keeps it for ever.
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// The same tensors in pinned host memory.
  std::vector<at::Tensor> host_tensors() const;

  // Driver, in this order.
  bool arrived_on_host();
  void send_back();
  /// True once the device has everything; lets tensors and buffers go.
  bool through();

  /// Whether send_back() was called, so that a stream can wait.
  bool sent_back() const { return sent_back_.load(std::memory_order_acquire); }
  /// Makes the current stream wait for the results.
  void wait();

 private:
  struct Part {
    StagedTensor staged;
    void* buffer;
  };
  std::shared_ptr<StagingArea> area_;
  std::vector<Part> parts_;
  device::Event on_host_, on_device_;
  std::atomic<bool> sent_back_{false};
};

}  // namespace zerosched::detail
