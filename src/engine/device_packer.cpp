#include "device/event_pool.h"
#include "engine/device_kernels.h"
#include "engine/gradient_packer.h"
#include "kernels/cuda/pack.h"

#include <deque>
#include <memory>
#include <optional>
#include <vector>

namespace zerosched::detail {
namespace {

namespace cuda = kernels::cuda;

class DevicePacker final : public GradientPacker {
 public:
  DevicePacker(const Layout& layout, DeviceExecutor& executor, DeviceKernels& kernels)
      : layout_(layout),
        executor_(executor),
        kernels_(kernels),
        events_(executor.runtime(), executor.device().index()),
        states_(layout.buckets.size()) {
    for (size_t b = 0; b < states_.size(); ++b) states_[b].gradients.resize(layout.buckets[b].slots.size());
  }

  ~DevicePacker() override { reset(); }

  bool needs_buffer() const override { return false; }

  bool put(const OutgoingBucket& to, int64_t slot, const at::Tensor& gradient) override {
    State& state = state_of(to.bucket);
    state.gradients[static_cast<size_t>(slot)] = gradient;
    executor_.note_in(state.streams);  // one, unless the model is spread over several
    return true;
  }

  void seal(int64_t bucket) override {
    State& state = state_of(bucket);
    for (const device::Stream stream : state.streams) {
      state.ready.push_back(events_.take());
      executor_.runtime().record(state.ready.back(), stream);
    }
  }

  void finish(const OutgoingBucket& to, const std::byte* report) override {
    State& state = state_of(to.bucket);
    if (state.ready.empty()) seal(to.bucket);
    const device::Stream beside = executor_.current_stream();
    for (const device::Event event : state.ready) executor_.runtime().wait(beside, event);  // rule 1
    const Bucket& layout = layout_.bucket(to.bucket);
    std::vector<cuda::PackSource> sources;
    for (size_t s = 0; s < layout.slots.size(); ++s) {
      const Slot& slot = layout.slots[s];
      const at::Tensor& gradient = state.gradients[s];
      const bool counts = gradient.defined() && to.weight != 0;
      sources.push_back({counts ? gradient.const_data_ptr() : nullptr, slot.offset, slot.numel,
          counts ? gradient.scalar_type() : layout.reduce_dtype});
    }
    const cuda::PackBucket bucket{to.flat.data_ptr(), layout_.world_size, layout.shard_numel,
        layout.flag_numel, to.slice_numel, upload(to, report), to.weight};
    kernels_.pack(layout.reduce_dtype, bucket, sources.data(), static_cast<int64_t>(sources.size()),
        static_cast<cuda::Stream>(beside.handle));
    if (!state.streams.empty()) {
      state.packed = events_.take();
      executor_.runtime().record(*state.packed, beside);
    }
    finished_.push_back(to.bucket);
  }

  void give_back() override {
    for (; finished_.size() > 1; finished_.pop_front()) release(state_of(finished_.front()), {});
  }

  void reduced(int64_t bucket) override { release(state_of(bucket), executor_.current_stream()); }

  void reset() override {
    for (State& state : states_) forget(state);
    finished_.clear();
  }

 private:
  struct State {
    std::vector<at::Tensor> gradients;    ///< by slot
    std::vector<device::Stream> streams;  ///< in which they came, each once
    std::vector<device::Event> ready;     ///< in each of them, behind the last gradient; once sealed
    std::optional<device::Event> packed;  ///< behind the kernel
  };

  State& state_of(int64_t bucket) { return states_[static_cast<size_t>(bucket)]; }

  // Rule 4. `after`: a stream that comes after the kernel anyway.
  void release(State& state, std::optional<device::Stream> after) {
    for (const device::Stream stream : state.streams) {
      if (!(after == stream) && state.packed) executor_.runtime().wait(stream, *state.packed);
    }
    forget(state);
  }

  void forget(State& state) {
    for (at::Tensor& gradient : state.gradients) gradient.reset();
    state.streams.clear();
    for (const device::Event event : state.ready) events_.give_back(event);
    state.ready.clear();
    if (state.packed) events_.give_back(*state.packed);
    state.packed.reset();
  }

  const void* upload(const OutgoingBucket& to, const std::byte* report) {
    const Bucket& layout = layout_.bucket(to.bucket);
    const int64_t numel = to.slice_numel - layout.gradient_slice_numel();
    if (numel == 0) return nullptr;
    const auto bytes = numel * static_cast<int64_t>(c10::elementSize(layout.reduce_dtype));
    if (!report_.defined() || report_.numel() < bytes) report_ = executor_.empty(bytes, at::kByte);
    executor_.upload(report_.narrow(0, 0, bytes), report);
    return report_.const_data_ptr();
  }

  const Layout& layout_;
  DeviceExecutor& executor_;
  DeviceKernels& kernels_;
  device::EventPool events_;
  std::vector<State> states_;     ///< by bucket
  std::deque<int64_t> finished_;  ///< buckets whose gradients may still be held
  at::Tensor report_;             ///< made in the stream of finish(), which alone uses it
};

}  // namespace

std::unique_ptr<GradientPacker> make_device_packer(
    const Layout& layout, DeviceExecutor& executor, DeviceKernels& kernels) {
  return std::make_unique<DevicePacker>(layout, executor, kernels);
}

}  // namespace zerosched::detail
