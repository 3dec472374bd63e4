#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

namespace zerosched::device {

/// A queue of work of one device: work in it runs in order, work in two of them in any. A name, not an owner.
struct Stream {
  int device = 0;
  void* handle = nullptr;
  bool operator==(const Stream& other) const { return device == other.device && handle == other.handle; }
};

/// A point in a stream: once recorded, what was in the stream before that call. A name, not an owner.
struct Event {
  int device = 0;
  void* handle = nullptr;
};

/// The few things that the rest of the library needs of a device's runtime. cuda() is the real one;
/// tests bring one over host memory that runs streams in the worst order that events allow.
///
/// All calls are thread-safe and throw c10::Error with the runtime's own text unless they say otherwise.
class Runtime {
 public:
  virtual ~Runtime();

  virtual int device_count() noexcept = 0;
  /// Why device_count() is 0, and what to do, as part of a sentence.
  virtual std::string why_no_device() = 0;
  /// Makes LibTorch's operations on the devices available: they are in a library that programs need not be
  /// linked with.
  virtual void prepare_tensors() = 0;
  /// A name of the device that no other device has, on any node.
  virtual std::string identity(int device) = 0;

  /// Where the tensor's memory is.
  virtual at::Device device_of(const at::Tensor& tensor) const = 0;
  /// An uninitialised 1-D tensor.
  virtual at::Tensor empty(int64_t numel, at::ScalarType dtype, int device) = 0;
  /// A 1-D tensor over memory of the device; `free_memory` runs when its storage goes.
  virtual at::Tensor wrap(void* memory, int64_t numel, at::ScalarType dtype, int device,
      std::function<void(void*)> free_memory) = 0;

  /// The stream that this thread's tensor operations go to.
  virtual Stream current_stream(int device) = 0;
  /// A new stream of the highest priority the device has.
  virtual Stream create_stream(int device) = 0;
  /// Whether what the stream is given becomes part of a graph instead of running.
  virtual bool is_capturing(Stream stream) = 0;
  virtual void destroy_stream(Stream stream) noexcept = 0;

  virtual Event create_event(int device) = 0;
  virtual void destroy_event(Event event) noexcept = 0;
  virtual void record(Event event, Stream stream) = 0;
  /// What `stream` is given from now on waits for the event as last recorded; the host does not.
  virtual void wait(Stream stream, Event event) = 0;
  /// Whether the event has passed; true also if it was never recorded. Does not wait.
  virtual bool query(Event event) = 0;
  /// Blocks the host until everything on the device has ended.
  virtual void synchronize(int device) = 0;

  /// Gives memory that LibTorch holds for its next tensors back to the device.
  virtual void release_cached_memory() = 0;
  /// Between device memory and pinned host memory, in either direction, in order with the stream.
  virtual void copy(void* to, const void* from, int64_t byte_count, Stream stream) = 0;
  /// Host memory that the device copies from and to while the host does something else.
  virtual void* allocate_pinned(int64_t byte_count) = 0;
  virtual void free_pinned(void* memory) noexcept = 0;

  // Of tensors, in this thread's current stream. Nothing is held: a tensor that goes before the stream gets
  // there must be one that was made in that stream, or kept.
  /// to := from, element by element, in to's dtype.
  virtual void assign(const at::Tensor& to, const at::Tensor& from) = 0;
  virtual void fill(const at::Tensor& tensor, double value) = 0;
  /// sum := sum + term, in sum's dtype.
  virtual void add(const at::Tensor& sum, const at::Tensor& term) = 0;
  /// Each element into [low, high]; NaN stays.
  virtual void clamp(const at::Tensor& tensor, double low, double high) = 0;
  /// sum, one float64 := that of the squares of the elements.
  virtual void sum_of_squares(const at::Tensor& sum, const at::Tensor& tensor) = 0;
  /// To be called by whoever reads or writes a tensor in another stream than it was made in: its memory is
  /// not given to anybody else before what this thread's current stream holds when the tensor goes has run.
  virtual void keep(const at::Tensor& tensor) = 0;
  /// A copy in host memory of what the tensor holds once this thread's current stream has got here. Blocks.
  virtual at::Tensor to_host(const at::Tensor& tensor) = 0;
  /// to := host, which has its elements in host memory and is the caller's again when this returns. Blocks.
  virtual void from_host(const at::Tensor& to, const at::Tensor& host) = 0;

  /// Makes `stream` the one that this thread's tensor operations on its device go to, until restore_stream() of the
  /// result.
  virtual int64_t exchange_stream(Stream stream) = 0;
  virtual void restore_stream(int device, int64_t previous) = 0;

  /// Makes `device` this thread's current one, which libraries above the runtime act on; returns the
  /// previous. A thread begins with device 0, used or not.
  virtual int exchange_device(int device) = 0;
  /// Undoes exchange_device(). A device on which this process has nothing gets nothing: a context takes hundreds of
  /// MB, and the one of device 0 would be there once per rank of the node.
  virtual void restore_device(int device) = 0;
  /// To be called first of all by a thread of the library's own: makes `device` its current one, and lets it work
  /// while other threads capture graphs.
  virtual void begin_thread(int device) = 0;
};

/// CUDA, through the runtime library that LibTorch uses. In a build without CUDA it has no devices, and says
/// so. Lives for ever.
Runtime& cuda();

/// Makes a device this thread's current one for a scope.
class DeviceScope {
 public:
  DeviceScope(Runtime& runtime, int device) : runtime_(runtime), previous_(runtime.exchange_device(device)) {}
  ~DeviceScope() {
    try {
      runtime_.restore_device(previous_);
    } catch (...) {
      // A device that is broken stays so, and the next call that can throw says it.
    }
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  Runtime& runtime_;
  int previous_;
};

/// Makes a stream this thread's current one, and its device, for a scope.
class StreamScope {
 public:
  StreamScope(Runtime& runtime, Stream stream)
      : device_(runtime, stream.device),
        runtime_(runtime),
        index_(stream.device),
        previous_(runtime.exchange_stream(stream)) {}
  ~StreamScope() {
    try {
      runtime_.restore_stream(index_, previous_);
    } catch (...) {
      // As above.
    }
  }
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  DeviceScope device_;
  Runtime& runtime_;
  const int index_;
  const int64_t previous_;
};

}  // namespace zerosched::device
