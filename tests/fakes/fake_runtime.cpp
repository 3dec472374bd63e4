#include "fakes/fake_runtime.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include <unistd.h>

namespace zerosched::testing {

using device::Event;
using device::Stream;

namespace {

constexpr int64_t kAlignment = 256;  // as CUDA's allocations

// As LibTorch has it: a device that it was told to go back to and that has nothing yet is remembered, not set.
thread_local int current_device = 0;
thread_local int remembered_device = -1;

// The same memory, whoever owns it: on a device an operation in a stream owns nothing.
at::Tensor unowned(const at::Tensor& tensor) {
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options());
}

// Whether this call is the one to forget.
bool forgets(int& countdown) { return countdown >= 0 && countdown-- == 0; }

}  // namespace

/// What the calls of the real one do for the time that they take.
struct FakeRuntime::Scope {
  Scope(FakeRuntime& runtime, int device, const char* call) : device(runtime, device) {
    runtime.touch_current(call);
  }
  device::DeviceScope device;
};

FakeRuntime::FakeRuntime(int devices, uint64_t seed) : devices_(devices), seed_(seed), random_(seed) {
  for (int device = 0; device < devices; ++device) current_.push_back(create_stream(device));
  touched_.clear();
}

// What has not run may hold each other: a stream waits for one that waits for it.
FakeRuntime::~FakeRuntime() {
  for (const auto& weak : queues_) {
    if (const auto queue = weak.lock()) queue->ops.clear();
  }
}

std::shared_ptr<FakeRuntime::Queue>& FakeRuntime::queue_of(Stream stream) {
  const auto found = streams_.find(stream.handle);
  TORCH_CHECK(found != streams_.end(), "fake device: the stream was destroyed or never created");
  return found->second;
}

void FakeRuntime::enqueue(Stream stream, std::function<bool()> step) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  queue_of(stream)->ops.push_back({std::move(step), {}});
}

void FakeRuntime::hold_stream(int nth) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  held_stream_ = nth;
}

bool FakeRuntime::run_head(Queue& queue, Asker asker) {
  if (asker == Asker::query && queue.number == held_stream_) return false;
  auto& op = queue.ops.front();
  if (op.step ? !op.step() : !advance(op.until, asker)) return false;
  queue.ops.pop_front();
  ++queue.done;
  return true;
}

// Runs what the point depends on, as far as that can be; whether it was reached.
bool FakeRuntime::advance(const Point& point, Asker asker) {
  while (!reached(point)) {
    if (!run_head(*point.queue, asker)) return false;
  }
  return true;
}

void FakeRuntime::run_ahead() {
  if (seed_ == 0) return;
  for (auto& [handle, queue] : streams_) {
    // A little or far.
    int64_t most = random_() % 2 == 0 ? 0 : int64_t{1} << (random_() % 7);
    while (most-- > 0 && !queue->ops.empty() && run_head(*queue, Asker::query)) {
    }
  }
}

void FakeRuntime::synchronize(Stream stream) {
  Point end;
  {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    end.queue = queue_of(stream);
    end.position = end.queue->done + static_cast<int64_t>(end.queue->ops.size());
  }
  for (;;) {
    {
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      run_ahead();
      if (advance(end, Asker::synchronize)) return;
    }
    std::this_thread::yield();
  }
}

at::Tensor FakeRuntime::to_device(const at::Tensor& host, int device) {
  auto tensor = empty(host.numel(), host.scalar_type(), device);
  enqueue(current_stream(device), [to = tensor.data_ptr(), host] {
    if (host.nbytes() > 0) std::memcpy(to, host.const_data_ptr(), host.nbytes());
    return true;
  });
  return tensor;
}

at::Tensor FakeRuntime::to_host(const at::Tensor& tensor) {
  auto host = at::empty_like(tensor);
  const Stream stream = current_stream(device_of(tensor).index());
  copy(host.data_ptr(), tensor.const_data_ptr(), static_cast<int64_t>(tensor.nbytes()), stream);
  synchronize(stream);
  return host;
}

void FakeRuntime::from_host(const at::Tensor& to, const at::Tensor& host) {
  assign(to, host);
  synchronize(current_stream(device_of(to).index()));
}

std::string FakeRuntime::identity(int device) {
  // Ranks are processes: each has devices of its own unless told otherwise.
  return (identity_.empty() ? std::to_string(getpid()) : identity_) + ":" + std::to_string(device);
}

at::Device FakeRuntime::device_of(const at::Tensor& tensor) const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  auto* address = static_cast<char*>(tensor.storage().mutable_data());
  auto range = device_ranges_.upper_bound(address);
  if (address == nullptr || range == device_ranges_.begin()) return at::kCPU;
  --range;
  const auto [byte_count, device] = range->second;
  if (address >= range->first + byte_count) return at::kCPU;
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
}

void* FakeRuntime::allocate(int64_t byte_count) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  memory_.emplace_back(new char[static_cast<size_t>(byte_count + kAlignment)]);
  char* start = memory_.back().get();
  char* aligned = start + (kAlignment - reinterpret_cast<intptr_t>(start) % kAlignment) % kAlignment;
  std::memset(aligned, 0xff, static_cast<size_t>(byte_count));
  allocations_[aligned] = byte_count;
  return aligned;
}

void FakeRuntime::free(void* memory) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const auto found = allocations_.find(static_cast<char*>(memory));
  TORCH_CHECK(found != allocations_.end(), "fake device: freed twice, or never allocated");
  std::memset(memory, 0xff, static_cast<size_t>(found->second));
  allocations_.erase(found);
}

int FakeRuntime::live_allocations() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return static_cast<int>(allocations_.size());
}

int64_t FakeRuntime::allocated_bytes() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return allocated_bytes_;
}

int64_t FakeRuntime::take_peak_bytes() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return std::exchange(peak_bytes_, allocated_bytes_);
}

int FakeRuntime::live_events() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return static_cast<int>(events_.size());
}

int FakeRuntime::live_streams() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return static_cast<int>(streams_.size());
}

at::Tensor FakeRuntime::empty(int64_t numel, at::ScalarType dtype, int device) {
  const Scope scope(*this, device, "empty");
  const auto byte_count = std::max<int64_t>(numel * static_cast<int64_t>(c10::elementSize(dtype)), 1);
  {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    allocated_bytes_ += byte_count;
    peak_bytes_ = std::max(peak_bytes_, allocated_bytes_);
  }
  return wrap(allocate(byte_count), numel, dtype, device,
      [this, byte_count, made_in = current_stream(device)](
          void* memory) { release(static_cast<char*>(memory), byte_count, made_in); });
}

// As LibTorch's allocator, which gives the memory to whoever asks next on the stream that it came from.
void FakeRuntime::release(char* memory, int64_t byte_count, Stream made_in) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  allocations_.erase(memory);
  std::vector<Point> kept;
  for (const Stream stream : kept_for_[memory]) {
    const auto& queue = queue_of(stream);
    kept.push_back({queue, queue->done + static_cast<int64_t>(queue->ops.size())});
  }
  kept_for_.erase(memory);
  if (kept.empty()) allocated_bytes_ -= byte_count;
  if (streams_.count(made_in.handle) == 0) return;
  for (const Point& point : kept) queue_of(made_in)->ops.push_back({{}, point});
  enqueue(made_in, [this, memory, byte_count, was_kept = !kept.empty()] {
    if (was_kept) allocated_bytes_ -= byte_count;
    std::memset(memory, 0xff, static_cast<size_t>(byte_count));
    return true;
  });
}

at::Tensor FakeRuntime::wrap(
    void* memory, int64_t numel, at::ScalarType dtype, int device, std::function<void(void*)> free_memory) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const auto byte_count = std::max<int64_t>(numel * static_cast<int64_t>(c10::elementSize(dtype)), 1);
  auto* address = static_cast<char*>(memory);
  device_ranges_[address] = {byte_count, device};
  const auto forget_and_free = [this, address, free_memory = std::move(free_memory)](void* freed) {
    {
      const std::lock_guard<std::recursive_mutex> range_lock(mutex_);
      device_ranges_.erase(address);
    }
    free_memory(freed);
  };
  return at::from_blob(memory, {numel}, forget_and_free, at::TensorOptions().dtype(dtype));
}

Stream FakeRuntime::current_stream(int device) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return current_.at(static_cast<size_t>(device));
}

void FakeRuntime::set_current_stream(Stream stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  current_.at(static_cast<size_t>(stream.device)) = stream;
}

void FakeRuntime::order(Stream before, Stream stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const auto& queue = queue_of(before);
  queue_of(stream)->ops.push_back({{}, {queue, queue->done + static_cast<int64_t>(queue->ops.size())}});
}

Stream FakeRuntime::create_stream(int device) {
  const Scope scope(*this, device, "create_stream");
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Stream stream{device, reinterpret_cast<void*>(next_handle_++)};
  auto queue = std::make_shared<Queue>();
  queue->number = streams_created_++;
  queues_.push_back(queue);
  streams_[stream.handle] = std::move(queue);
  return stream;
}

void FakeRuntime::destroy_stream(Stream stream) noexcept {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  streams_.erase(stream.handle);
}

Event FakeRuntime::create_event(int device) {
  const Scope scope(*this, device, "create_event");
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Event event{device, reinterpret_cast<void*>(next_handle_++)};
  events_[event.handle] = {};
  return event;
}

void FakeRuntime::destroy_event(Event event) noexcept {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  events_.erase(event.handle);
}

void FakeRuntime::record(Event event, Stream stream) {
  const Scope scope(*this, stream.device, "record");
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (forgets(records_to_forget_)) return;
  const auto& queue = queue_of(stream);
  events_.at(event.handle) = {queue, queue->done + static_cast<int64_t>(queue->ops.size())};
}

void FakeRuntime::wait(Stream stream, Event event) {
  const Scope scope(*this, stream.device, "wait");
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (forgets(waits_to_forget_)) return;
  queue_of(stream)->ops.push_back({{}, events_.at(event.handle)});
}

bool FakeRuntime::query(Event event) {
  const Scope scope(*this, event.device, "query");
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (forgets(queries_to_forget_)) return true;
  run_ahead();
  return advance(Point(events_.at(event.handle)), Asker::query);
}

void FakeRuntime::synchronize(int device) {
  const Scope scope(*this, device, "synchronize");
  std::vector<Stream> all;
  {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    for (const auto& stream : streams_) all.push_back({device, stream.first});
  }
  for (const auto stream : all) synchronize(stream);
}

void FakeRuntime::copy(void* to, const void* from, int64_t byte_count, Stream stream) {
  const Scope scope(*this, stream.device, "copy");
  enqueue(stream, [to, from, byte_count] {
    if (byte_count > 0) std::memcpy(to, from, static_cast<size_t>(byte_count));
    return true;
  });
}

void FakeRuntime::enqueue(const at::Tensor& of, std::function<void()> operation) {
  enqueue(current_stream(device_of(of).index()), [operation = std::move(operation)] {
    operation();
    return true;
  });
}

void FakeRuntime::assign(const at::Tensor& to, const at::Tensor& from) {
  const bool to_host = device_of(to).is_cpu();
  enqueue(to_host ? from : to, [to = unowned(to), from = unowned(from)] { to.copy_(from); });
}

void FakeRuntime::fill(const at::Tensor& tensor, double value) {
  enqueue(tensor, [tensor = unowned(tensor), value] { tensor.fill_(value); });
}

void FakeRuntime::add(const at::Tensor& sum, const at::Tensor& term) {
  enqueue(sum, [sum = unowned(sum), term = unowned(term)] { sum.add_(term); });
}

void FakeRuntime::clamp(const at::Tensor& tensor, double low, double high) {
  enqueue(tensor, [tensor = unowned(tensor), low, high] { tensor.clamp_(low, high); });
}

void FakeRuntime::sum_of_squares(const at::Tensor& sum, const at::Tensor& tensor) {
  enqueue(tensor, [sum = unowned(sum), tensor = unowned(tensor)] {
    const at::Tensor wide = tensor.to(at::kDouble);
    sum.copy_(wide.mul(wide).sum());
  });
}

void FakeRuntime::keep(const at::Tensor& tensor) {
  const int device = device_of(tensor).index();
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  kept_for_[static_cast<char*>(tensor.storage().mutable_data())].push_back(current_stream(device));
}

int64_t FakeRuntime::exchange_stream(Stream stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  Stream& current = current_.at(static_cast<size_t>(stream.device));
  return reinterpret_cast<int64_t>(std::exchange(current, stream).handle);
}

void FakeRuntime::restore_stream(int device, int64_t previous) {
  set_current_stream({device, reinterpret_cast<void*>(previous)});
}

int FakeRuntime::exchange_device(int device) {
  const int previous = remembered_device >= 0 ? remembered_device : current_device;
  remembered_device = -1;
  if (device != current_device) touch(device, "exchange_device");
  current_device = device;
  return previous;
}

void FakeRuntime::restore_device(int device) {
  remembered_device = -1;
  if (device == current_device) return;
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  (touched_.count(device) > 0 ? current_device : remembered_device) = device;
}

void FakeRuntime::begin_thread(int device) {
  exchange_device(device);
  touch_current("begin_thread");
}

int FakeRuntime::current_device_of_thread() { return current_device; }

void FakeRuntime::touch(int device, const char* call) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  touched_[device].insert(call);
}

std::map<int, std::set<std::string>> FakeRuntime::touched() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return touched_;
}

void FakeRuntime::forget_touched() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  touched_.clear();
  current_device = 0;
  remembered_device = -1;
}

bool FakeRuntime::is_capturing(Stream stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return capturing_.count(stream.handle) > 0;
}

void FakeRuntime::set_capturing(Stream stream, bool capturing) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (capturing) {
    capturing_.insert(stream.handle);
  } else {
    capturing_.erase(stream.handle);
  }
}

}  // namespace zerosched::testing
