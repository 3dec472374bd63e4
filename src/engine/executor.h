#pragma once

#include "device/runtime.h"
#include "engine/piecewise_copy.h"
#include "engine/pinned_buffer.h"

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace zerosched::detail {

/// Where an optimizer's operations on tensors run: at once on the CPU, in the caller's stream on a GPU.
///
/// The stream rules, each applied where it says so. (Those of a collective are its backend's: it comes after
/// what its caller's stream holds, Work::wait() makes a stream come after it, and its tensors are held.)
/// 1. (enter, beside; DevicePacker::finish) Whoever begins to use the optimizer's tensors, a call from outside, src/io,
///    a hook that does more than to note a gradient, comes after all users before, whatever streams those were in.
///    Gradients are packed beside them, after the last of the bucket was made in its stream. So gradients are reduced into
///    a shard after the update has read the last ones, a table is written after the kernels have read the last one,
///    and a checkpoint holds whole steps.
/// 2. (GradientReducer::launch) A bucket's buffer is packed after the reduce-scatter of the bucket before in it.
/// 3. (GradientReducer::wait) A shard is read after its reduce-scatter.
/// 4. (DevicePacker::release) The streams in which a bucket's gradients came wait for their packing before the
///    gradients go, so that their memory may be handed out again at once. (ParameterGradients, GradientReducer::put,
///    SpanTable::add) Where we read a gradient in the caller's stream, it keeps its memory until it was read.
/// 5. (SpanTable::upload, DeviceExecutor::upload, PiecewiseCopy) The host overwrites what is copied to the device after the copy.
/// 6. (DeviceUpdater::norm, PiecewiseCopy) The host reads what is copied from the device after the copy.
/// 7. (Engine::update_and_gather, write_point) The caller comes after the parameters have been gathered. (ParameterGathers)
///    Or, with ShardingOptions::overlap_forward, whoever is about to use some of them comes after the gathers of these, and
///    Engine::enter() after all.
/// 8. (leave) The streams that tensors were made in come after all their users, before the tensors go.
class Executor {
 public:
  virtual ~Executor() = default;

  virtual at::Device device() const = 0;
  /// An uninitialised 1-D tensor.
  virtual at::Tensor empty(int64_t numel, at::ScalarType dtype) = 0;
  /// Begins a use: rule 1. The device is this thread's current one while the result lives. Throws where the thread's
  /// current stream is being captured into a graph.
  [[nodiscard]] virtual std::unique_ptr<device::DeviceScope> enter() = 0;
  /// Why enter() would throw; empty: it would not.
  virtual std::string why_not_enterable() const = 0;
  /// As enter(), but comes after nobody: for who waits for just what he needs.
  [[nodiscard]] virtual std::unique_ptr<device::DeviceScope> visit() = 0;
  /// Adds this thread's stream to `noted`; whether it was not there. Throws if it is new and being captured. The CPU is
  /// one stream.
  virtual bool note_in(std::vector<device::Stream>& noted) const = 0;
  /// A use in a stream of its own, which is this thread's current one while the result lives, so that the caller's goes
  /// on. `after_all`: after all users so far. Users to come are not made to come after this one.
  [[nodiscard]] virtual std::unique_ptr<device::StreamScope> beside(bool after_all) = 0;
  /// Has whoever enters next come after what this thread's stream holds then.
  virtual void note() = 0;
  // As those of device::Runtime.
  virtual void assign(const at::Tensor& to, const at::Tensor& from) = 0;
  virtual void fill(const at::Tensor& tensor, double value) = 0;
  virtual void add(const at::Tensor& sum, const at::Tensor& term) = 0;
  virtual void clamp(const at::Tensor& tensor, double low, double high) = 0;
  virtual void keep(const at::Tensor& tensor) = 0;
  /// to := what is at `from`, which is in host memory and the caller's again when this returns. Does not block.
  virtual void upload(const at::Tensor& to, const void* from) = 0;
  /// Of each of the flat tensors, 0 for those that are undefined; in double. Blocks.
  virtual std::vector<double> sums_of_squares(const std::vector<at::Tensor>& tensors) = 0;
  /// A copy in host memory, or the tensor itself if it is there. Blocks.
  virtual at::Tensor to_host(const at::Tensor& tensor) = 0;
  /// to := host, which is in host memory and the caller's again when this returns. Blocks.
  virtual void from_host(const at::Tensor& to, const at::Tensor& host) = 0;
  /// Gives the bytes of a tensor to `take`, in their order in memory if it is contiguous, else in that of its elements, at
  /// most kPieceBytes at a time and in host memory. Blocks.
  using Take = std::function<void(const std::byte* bytes, int64_t count)>;
  virtual void read(const at::Tensor& tensor, const Take& take) = 0;
  /// Has `give` write the bytes of a contiguous tensor, likewise. What comes after it in the stream finds them.
  using Give = std::function<void(std::byte* bytes, int64_t count)>;
  virtual void write(const at::Tensor& tensor, const Give& give) = 0;
  /// Has LibTorch give back the memory that it keeps for its next tensors.
  virtual void release_cached_memory() = 0;
  /// Before the tensors go: rule 8.
  virtual void leave() = 0;
};

class HostExecutor final : public Executor {
 public:
  at::Device device() const override { return at::kCPU; }
  at::Tensor empty(int64_t numel, at::ScalarType dtype) override;
  std::unique_ptr<device::DeviceScope> enter() override { return nullptr; }
  std::string why_not_enterable() const override { return {}; }
  std::unique_ptr<device::DeviceScope> visit() override { return nullptr; }
  bool note_in(std::vector<device::Stream>& noted) const override;
  std::unique_ptr<device::StreamScope> beside(bool) override { return nullptr; }
  void note() override {}
  void assign(const at::Tensor& to, const at::Tensor& from) override;
  void fill(const at::Tensor& tensor, double value) override;
  void add(const at::Tensor& sum, const at::Tensor& term) override;
  void clamp(const at::Tensor& tensor, double low, double high) override;
  void keep(const at::Tensor&) override {}
  void upload(const at::Tensor& to, const void* from) override;
  std::vector<double> sums_of_squares(const std::vector<at::Tensor>& tensors) override;
  at::Tensor to_host(const at::Tensor& tensor) override;
  void from_host(const at::Tensor& to, const at::Tensor& host) override { assign(to, host); }
  void read(const at::Tensor& tensor, const Take& take) override;
  void write(const at::Tensor& tensor, const Give& give) override;
  void release_cached_memory() override {}
  void leave() override {}
};

class DeviceExecutor final : public Executor {
 public:
  DeviceExecutor(device::Runtime& runtime, int device);
  ~DeviceExecutor() override;
  DeviceExecutor(const DeviceExecutor&) = delete;
  DeviceExecutor& operator=(const DeviceExecutor&) = delete;

  device::Runtime& runtime() const { return runtime_; }
  device::Stream current_stream() const { return runtime_.current_stream(device_); }

  at::Device device() const override;
  at::Tensor empty(int64_t numel, at::ScalarType dtype) override;
  std::unique_ptr<device::DeviceScope> enter() override;
  std::string why_not_enterable() const override { return why_not_usable(current_stream()); }
  std::unique_ptr<device::DeviceScope> visit() override;
  bool note_in(std::vector<device::Stream>& noted) const override;
  std::unique_ptr<device::StreamScope> beside(bool after_all) override;
  void note() override;
  void assign(const at::Tensor& to, const at::Tensor& from) override { runtime_.assign(to, from); }
  void fill(const at::Tensor& tensor, double value) override { runtime_.fill(tensor, value); }
  void add(const at::Tensor& sum, const at::Tensor& term) override { runtime_.add(sum, term); }
  void clamp(const at::Tensor& tensor, double low, double high) override {
    runtime_.clamp(tensor, low, high);
  }
  void keep(const at::Tensor& tensor) override { runtime_.keep(tensor); }
  void upload(const at::Tensor& to, const void* from) override;
  std::vector<double> sums_of_squares(const std::vector<at::Tensor>& tensors) override;
  at::Tensor to_host(const at::Tensor& tensor) override;
  void from_host(const at::Tensor& to, const at::Tensor& host) override;
  void read(const at::Tensor& tensor, const Take& take) override;
  void write(const at::Tensor& tensor, const Give& give) override;
  void release_cached_memory() override { runtime_.release_cached_memory(); }
  void leave() override;

 private:
  std::string why_not_usable(device::Stream stream) const;
  void refuse_capture(device::Stream stream) const;
  void follow(device::Stream stream);
  void order(device::Stream before, device::Stream after);

  device::Runtime& runtime_;
  const int device_;
  const device::Stream made_in_;  ///< the stream that tensors of empty() come from, at construction
  const device::Stream beside_;
  std::mutex mutex_;
  device::Stream last_;  ///< under mutex_: entered last; what was queued there comes after all before
  std::vector<device::Stream> noted_;  ///< under mutex_
  device::Event event_;                ///< under mutex_
  PinnedBuffers uploads_;              ///< under mutex_
  PiecewiseCopy pieces_;
};

}  // namespace zerosched::detail
