#pragma once

#include "device/runtime.h"
#include "timeline/machine_model.h"
#include "timeline/timeline.h"

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace zerosched::testing {

/// A GPU of which only the time is there: calls take what the model says, streams and events follow CUDA's rules on a
/// timeline, and the host runs ahead as far as it likes. Nothing is computed, and device memory holds nothing that may
/// be read or written: it is addresses, so that a model of any size fits. What comes back to the host is zeros.
///
/// Calls of other threads than the one that made it, which only look after what has ended, cost nothing.
class TimedRuntime final : public device::Runtime {
 public:
  explicit TimedRuntime(MachineModel model);
  ~TimedRuntime() override;
  TimedRuntime(const TimedRuntime&) = delete;
  TimedRuntime& operator=(const TimedRuntime&) = delete;

  const MachineModel& model() const { return model_; }
  const Timeline& timeline() const { return timeline_; }
  double now() const;
  /// The host works on something that is not the device's.
  void work(double seconds, Phase phase, const char* name);
  /// Something in a stream, given by a call that costs the host `call` seconds.
  void queue(device::Stream stream, double seconds, double call, Phase phase, const std::string& name);
  /// When all that the stream was given has ended.
  double end_of(device::Stream stream) const;
  void synchronize(device::Stream stream);

  /// Calls of the thread that made it, by kind, since the last call of this.
  std::map<std::string, int64_t> take_calls();
  /// Bytes of tensors that are alive, and the most since the last call of take_peak_bytes(): as LibTorch's caching
  /// allocator counts them, for which memory is free again as soon as its tensor goes.
  int64_t allocated_bytes() const;
  int64_t take_peak_bytes();
  /// Addresses for others than empty().
  void* allocate(int64_t byte_count);
  void free(int64_t byte_count);

  int device_count() noexcept override { return 1; }
  std::string why_no_device() override { return "the timed device is there"; }
  void prepare_tensors() override {}
  std::string identity(int) override { return "timed"; }
  at::Device device_of(const at::Tensor& tensor) const override;
  at::Tensor empty(int64_t numel, at::ScalarType dtype, int device) override;
  at::Tensor wrap(void* memory, int64_t numel, at::ScalarType dtype, int device,
      std::function<void(void*)> free_memory) override;
  device::Stream current_stream(int device) override;
  device::Stream create_stream(int device) override;
  bool is_capturing(device::Stream) override { return false; }
  void destroy_stream(device::Stream) noexcept override {}
  device::Event create_event(int device) override;
  void destroy_event(device::Event event) noexcept override;
  void record(device::Event event, device::Stream stream) override;
  void wait(device::Stream stream, device::Event event) override;
  bool query(device::Event event) override;
  void synchronize(int device) override;
  void release_cached_memory() override {}
  void copy(void* to, const void* from, int64_t byte_count, device::Stream stream) override;
  void* allocate_pinned(int64_t byte_count) override;
  void free_pinned(void* memory) noexcept override;
  void assign(const at::Tensor& to, const at::Tensor& from) override;
  void fill(const at::Tensor& tensor, double value) override;
  void add(const at::Tensor& sum, const at::Tensor& term) override;
  void clamp(const at::Tensor& tensor, double low, double high) override;
  void sum_of_squares(const at::Tensor& sum, const at::Tensor& tensor) override;
  void keep(const at::Tensor& tensor) override;
  at::Tensor to_host(const at::Tensor& tensor) override;
  void from_host(const at::Tensor& to, const at::Tensor& host) override;
  int64_t exchange_stream(device::Stream stream) override;
  void restore_stream(int device, int64_t previous) override;
  int exchange_device(int) override { return 0; }
  void restore_device(int) override {}
  void begin_thread(int) override {}

 private:
  static constexpr int64_t kAddresses = int64_t{1} << 42;  // 4 TiB, none of them ever used
  int lane_of(device::Stream stream) const;
  bool is_host() const { return std::this_thread::get_id() == host_; }
  void call(const char* kind, double seconds);
  void block(double until, const char* name);
  /// An operation of LibTorch's on a tensor that reads and writes so many bytes.
  void operate(const char* kind, double bytes);

  const MachineModel model_;
  const std::thread::id host_ = std::this_thread::get_id();
  mutable std::recursive_mutex mutex_;
  Timeline timeline_;
  char* const addresses_;
  int64_t next_address_ = 0;
  int64_t allocated_ = 0, peak_ = 0;
  int64_t next_event_ = 1;
  std::map<void*, double> events_;  ///< when they pass
  void* asked_for_ = nullptr;       ///< the event of the host's last query, if that has not passed
  std::set<void*> pinned_;
  std::map<std::string, int64_t> calls_;
  device::Stream current_;
};

}  // namespace zerosched::testing
