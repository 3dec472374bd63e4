#include "timeline/timed_runtime.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include <sys/mman.h>

namespace zerosched::testing {

using device::Event;
using device::Stream;
using Lock = std::lock_guard<std::recursive_mutex>;

namespace {

constexpr int64_t kAlignment = 512;  // as LibTorch's allocator

char* reserve(int64_t byte_count) {
  void* memory = mmap(nullptr, static_cast<size_t>(byte_count), PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK(memory != MAP_FAILED, "timed device: no ", byte_count >> 40,
      " TiB of addresses; vm.overcommit_memory must not be 2, nor ulimit -v set");
  return static_cast<char*>(memory);
}

int64_t aligned(int64_t byte_count) { return (byte_count + kAlignment - 1) / kAlignment * kAlignment; }

double bytes_of(const at::Tensor& tensor) { return static_cast<double>(tensor.nbytes()); }

}  // namespace

TimedRuntime::TimedRuntime(MachineModel model) : model_(std::move(model)), addresses_(reserve(kAddresses)) {
  current_ = create_stream(0);
}

TimedRuntime::~TimedRuntime() {
  munmap(addresses_, kAddresses);
  for (void* memory : pinned_) std::free(memory);
}

int TimedRuntime::lane_of(Stream stream) const {
  return static_cast<int>(reinterpret_cast<intptr_t>(stream.handle));
}

double TimedRuntime::now() const {
  const Lock lock(mutex_);
  return timeline_.now();
}

double TimedRuntime::end_of(Stream stream) const {
  const Lock lock(mutex_);
  return timeline_.end_of(lane_of(stream));
}

void TimedRuntime::work(double seconds, Phase phase, const char* name) {
  const Lock lock(mutex_);
  timeline_.work(seconds, phase, name);
}

void TimedRuntime::call(const char* kind, double seconds) {
  if (!is_host()) return;
  asked_for_ = nullptr;
  ++calls_[kind];
  timeline_.work(seconds, Phase::other, kind);
}

void TimedRuntime::block(double until, const char* name) {
  if (is_host()) timeline_.block(until, name);
}

void TimedRuntime::queue(Stream stream, double seconds, double cost, Phase phase, const std::string& name) {
  const Lock lock(mutex_);
  call(name_of(phase), cost);
  timeline_.queue(lane_of(stream), seconds, phase, name);
}

std::map<std::string, int64_t> TimedRuntime::take_calls() {
  const Lock lock(mutex_);
  return std::exchange(calls_, {});
}

int64_t TimedRuntime::allocated_bytes() const {
  const Lock lock(mutex_);
  return allocated_;
}

int64_t TimedRuntime::take_peak_bytes() {
  const Lock lock(mutex_);
  return std::exchange(peak_, allocated_);
}

void* TimedRuntime::allocate(int64_t byte_count) {
  const Lock lock(mutex_);
  const int64_t begin = next_address_;
  next_address_ += aligned(std::max<int64_t>(byte_count, 1));
  TORCH_CHECK(next_address_ <= kAddresses, "timed device: all its addresses have been given out");
  allocated_ += byte_count;
  peak_ = std::max(peak_, allocated_);
  return addresses_ + begin;
}

void TimedRuntime::free(int64_t byte_count) {
  const Lock lock(mutex_);
  allocated_ -= byte_count;
}

at::Device TimedRuntime::device_of(const at::Tensor& tensor) const {
  const auto* address = static_cast<const char*>(tensor.storage().data());
  const bool is_ours = address >= addresses_ && address < addresses_ + kAddresses;
  return is_ours ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

at::Tensor TimedRuntime::empty(int64_t numel, at::ScalarType dtype, int device) {
  const Lock lock(mutex_);
  call("allocate", model_.allocation_call);
  const auto byte_count = numel * static_cast<int64_t>(c10::elementSize(dtype));
  return wrap(allocate(byte_count), numel, dtype, device, [this, byte_count](void*) { free(byte_count); });
}

at::Tensor TimedRuntime::wrap(
    void* memory, int64_t numel, at::ScalarType dtype, int, std::function<void(void*)> free_memory) {
  return at::from_blob(memory, {numel}, std::move(free_memory), at::TensorOptions().dtype(dtype));
}

Stream TimedRuntime::current_stream(int) {
  const Lock lock(mutex_);
  return current_;
}

Stream TimedRuntime::create_stream(int device) {
  const Lock lock(mutex_);
  const int lane = timeline_.add_lane("stream " + std::to_string(timeline_.lane_count()));
  return {device, reinterpret_cast<void*>(static_cast<intptr_t>(lane))};
}

Event TimedRuntime::create_event(int device) {
  const Lock lock(mutex_);
  void* handle = reinterpret_cast<void*>(static_cast<intptr_t>(next_event_++));
  events_[handle] = 0;
  return {device, handle};
}

void TimedRuntime::destroy_event(Event event) noexcept {
  const Lock lock(mutex_);
  events_.erase(event.handle);
}

void TimedRuntime::record(Event event, Stream stream) {
  const Lock lock(mutex_);
  call("record", model_.event_call);
  events_.at(event.handle) = std::max(timeline_.now(), timeline_.end_of(lane_of(stream)));
}

void TimedRuntime::wait(Stream stream, Event event) {
  const Lock lock(mutex_);
  call("wait", model_.event_call);
  timeline_.hold(lane_of(stream), events_.at(event.handle));
}

bool TimedRuntime::query(Event event) {
  const Lock lock(mutex_);
  const double passes_at = events_.at(event.handle);
  // Who asks again at once does nothing but wait.
  if (is_host() && event.handle == asked_for_) block(passes_at, "an event");
  call("query", model_.query_call);
  const bool has_passed = passes_at <= timeline_.now();
  if (is_host()) asked_for_ = has_passed ? nullptr : event.handle;
  return has_passed;
}

void TimedRuntime::synchronize(Stream stream) {
  const Lock lock(mutex_);
  call("synchronize", model_.event_call);
  block(timeline_.end_of(lane_of(stream)), "synchronize");
}

void TimedRuntime::synchronize(int) {
  const Lock lock(mutex_);
  for (int lane = 1; lane < timeline_.lane_count(); ++lane) block(timeline_.end_of(lane), "synchronize");
}

void TimedRuntime::copy(void*, const void*, int64_t byte_count, Stream stream) {
  queue(stream, model_.kernel_start + static_cast<double>(byte_count) / model_.link_bandwidth,
      model_.copy_call, Phase::other, "copy");
}

void* TimedRuntime::allocate_pinned(int64_t byte_count) {
  const Lock lock(mutex_);
  void* memory = std::calloc(static_cast<size_t>(std::max<int64_t>(byte_count, 1)), 1);
  pinned_.insert(memory);
  return memory;
}

void TimedRuntime::free_pinned(void* memory) noexcept {
  const Lock lock(mutex_);
  pinned_.erase(memory);
  std::free(memory);
}

void TimedRuntime::operate(const char* kind, double bytes) {
  queue(current_stream(0), model_.kernel(bytes), model_.tensor_call, Phase::other, kind);
}

void TimedRuntime::assign(const at::Tensor& to, const at::Tensor& from) {
  operate("assign", bytes_of(to) + bytes_of(from));
}
void TimedRuntime::fill(const at::Tensor& tensor, double) { operate("fill", bytes_of(tensor)); }
void TimedRuntime::add(const at::Tensor& sum, const at::Tensor& term) {
  operate("add", 2 * bytes_of(sum) + bytes_of(term));
}
void TimedRuntime::clamp(const at::Tensor& tensor, double, double) { operate("clamp", 2 * bytes_of(tensor)); }
void TimedRuntime::sum_of_squares(const at::Tensor&, const at::Tensor& tensor) {
  operate("sum_of_squares", bytes_of(tensor));
}
void TimedRuntime::keep(const at::Tensor&) {
  const Lock lock(mutex_);
  call("keep", model_.event_call);
}

at::Tensor TimedRuntime::to_host(const at::Tensor& tensor) {
  const Stream stream = current_stream(0);
  copy(nullptr, nullptr, static_cast<int64_t>(tensor.nbytes()), stream);
  synchronize(stream);
  // Pages that nobody has written take no memory.
  void* memory = std::calloc(std::max<size_t>(tensor.nbytes(), 1), 1);
  return at::from_blob(
      memory, tensor.sizes(), [](void* zeros) { std::free(zeros); }, tensor.options());
}

void TimedRuntime::from_host(const at::Tensor& to, const at::Tensor&) {
  const Stream stream = current_stream(0);
  copy(nullptr, nullptr, static_cast<int64_t>(to.nbytes()), stream);
  synchronize(stream);
}

int64_t TimedRuntime::exchange_stream(Stream stream) {
  const Lock lock(mutex_);
  return reinterpret_cast<int64_t>(std::exchange(current_, stream).handle);
}

void TimedRuntime::restore_stream(int device, int64_t previous) {
  const Lock lock(mutex_);
  current_ = {device, reinterpret_cast<void*>(previous)};
}

}  // namespace zerosched::testing
