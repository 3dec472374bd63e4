#pragma once

#include "device/runtime.h"

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::testing {

/// A device over host memory for tests: CPU tensors that empty() and wrap() have made stand in for its
/// tensors, streams are queues of closures.
///
/// Order is the worst that the events allow: what is in a stream runs when somebody asks for an event behind
/// it, and then only what that event depends on. So work that a stream should have waited for and does not is
/// not done yet, deterministically. With a seed other than 0 other streams run ahead at random besides. Freed
/// memory is filled with 0xff bytes, and not used again: that of a tensor when the stream gets there that it
/// was made in, and those that keep() was called in.
class FakeRuntime : public device::Runtime {
 public:
  explicit FakeRuntime(int devices = 1, uint64_t seed = 0);
  ~FakeRuntime() override;

  /// One that stays: for tests that leave threads behind in calls that hang, which look at it until they end.
  static FakeRuntime& make_for_ever() { return *new FakeRuntime; }

  // What tests do beside the interface.

  /// Puts work into a stream; `step` is called until it returns true.
  void enqueue(device::Stream stream, std::function<bool()> step);
  /// Blocks the host until the stream is empty, as cudaStreamSynchronize.
  void synchronize(device::Stream stream);
  /// A device tensor that will hold `host`, by a copy in the current stream.
  at::Tensor to_device(const at::Tensor& host, int device = 0);
  /// As a c10::cuda::CUDAStreamGuard, but for all threads and until the next call.
  void set_current_stream(device::Stream stream);
  /// What a program with streams of its own does by an event: what `stream` is given from now on comes after
  /// what `before` holds. Never forgotten.
  void order(device::Stream before, device::Stream stream);

  /// Forgets the nth (from 0) of the calls to wait(), record() or query() (says that the event has passed)
  /// from now on: what a test must notice.
  void forget_wait(int nth) { waits_to_forget_ = nth; }
  void forget_record(int nth) { records_to_forget_ = nth; }
  void forget_query(int nth) { queries_to_forget_ = nth; }
  /// Whether all that was to be forgotten has been: else the test has tested nothing.
  bool has_forgotten() const {
    return waits_to_forget_ < 0 && records_to_forget_ < 0 && queries_to_forget_ < 0;
  }
  /// Queries, which threads make at any time, no longer run what is in the nth stream created (0 is the
  /// current one of device 0), so that a test decides when it runs; -1 undoes it.
  void hold_stream(int nth);
  /// Makes identity() of every device the same on all ranks that say so.
  void set_identity(std::string identity) { identity_ = std::move(identity); }
  /// Memory that is not empty()'s: for a fake of a library that allocates on the device.
  void* allocate(int64_t byte_count);
  void free(void* memory);
  int live_allocations() const;
  /// Bytes of empty()'s tensors that LibTorch's caching allocator could give to nobody else: memory is free again for
  /// its stream as soon as its tensor goes, but where keep() was called in others not before those got there.
  int64_t allocated_bytes() const;
  /// The most of it since the last call.
  int64_t take_peak_bytes();
  int live_events() const;
  int live_streams() const;
  int prepared = 0;         ///< calls of prepare_tensors()
  int caches_released = 0;  ///< calls of release_cached_memory()

  /// As between cudaStreamBeginCapture and cudaStreamEndCapture, for is_capturing() alone.
  void set_capturing(device::Stream stream, bool capturing);
  /// The devices on which CUDA would have made a context for this process, and the calls that it would have been
  /// for. A library above acts on the calling thread's current device: its fake calls touch_current().
  std::map<int, std::set<std::string>> touched() const;
  void touch_current(const char* call) { touch(current_device_of_thread(), call); }
  /// What touched() says from now on; this thread's current device is device 0, as that of a new thread.
  void forget_touched();

  int device_count() noexcept override { return devices_; }
  std::string why_no_device() override { return "the fake has no devices"; }
  void prepare_tensors() override { ++prepared; }
  std::string identity(int device) override;
  at::Device device_of(const at::Tensor& tensor) const override;
  at::Tensor empty(int64_t numel, at::ScalarType dtype, int device) override;
  at::Tensor wrap(void* memory, int64_t numel, at::ScalarType dtype, int device,
      std::function<void(void*)> free_memory) override;
  device::Stream current_stream(int device) override;
  device::Stream create_stream(int device) override;
  bool is_capturing(device::Stream stream) override;
  void destroy_stream(device::Stream stream) noexcept override;
  device::Event create_event(int device) override;
  void destroy_event(device::Event event) noexcept override;
  void record(device::Event event, device::Stream stream) override;
  void wait(device::Stream stream, device::Event event) override;
  bool query(device::Event event) override;
  void synchronize(int device) override;
  void release_cached_memory() override { ++caches_released; }
  void copy(void* to, const void* from, int64_t byte_count, device::Stream stream) override;
  void* allocate_pinned(int64_t byte_count) override { return allocate(byte_count); }
  void free_pinned(void* memory) noexcept override { free(memory); }
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
  int exchange_device(int device) override;
  void restore_device(int device) override;
  void begin_thread(int device) override;

 private:
  struct Scope;
  struct Queue;
  /// A place in a queue: everything before it.
  struct Point {
    std::shared_ptr<Queue> queue;
    int64_t position = 0;
  };
  struct Op {
    std::function<bool()> step;  // empty: waits for `until`
    Point until;
  };
  struct Queue {
    std::deque<Op> ops;
    int64_t done = 0;  // how many have run
    int number = 0;    // of the stream, in the order of creation
  };

  static bool reached(const Point& point) { return !point.queue || point.queue->done >= point.position; }
  enum class Asker { query, synchronize };
  bool advance(const Point& point, Asker asker);
  bool run_head(Queue& queue, Asker asker);
  void run_ahead();
  std::shared_ptr<Queue>& queue_of(device::Stream stream);
  void enqueue(const at::Tensor& of, std::function<void()> operation);
  void release(char* memory, int64_t byte_count, device::Stream made_in);

  static int current_device_of_thread();
  void touch(int device, const char* call);

  int devices_;
  uint64_t seed_;
  std::string identity_;
  mutable std::recursive_mutex mutex_;
  std::mt19937_64 random_;
  std::map<void*, std::shared_ptr<Queue>> streams_;
  std::vector<std::weak_ptr<Queue>> queues_;  // of all streams, those that were destroyed too
  std::map<void*, Point> events_;
  std::vector<device::Stream> current_;
  std::map<char*, int64_t> allocations_;  // live, by address
  int64_t allocated_bytes_ = 0, peak_bytes_ = 0;
  std::vector<std::unique_ptr<char[]>> memory_;
  std::map<char*, std::pair<int64_t, int>> device_ranges_;  // of tensors: address to size and device
  std::map<char*, std::vector<device::Stream>> kept_for_;   // of tensors: by address of the storage
  std::map<int, std::set<std::string>> touched_;            // calls by device
  std::set<void*> capturing_;
  int64_t next_handle_ = 1;
  int streams_created_ = 0;
  int held_stream_ = -1;
  int waits_to_forget_ = -1, records_to_forget_ = -1, queries_to_forget_ = -1;
};

}  // namespace zerosched::testing
