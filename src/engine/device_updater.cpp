#include "comm/backoff.h"
#include "engine/shard_updater.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

namespace zerosched::detail {
namespace {

namespace cuda = kernels::cuda;

constexpr auto kPatience = std::chrono::seconds(5);

/// Pinned host memory that the device copies from or to, and the event behind the copy.
class PinnedBuffer {
 public:
  PinnedBuffer(device::Runtime& runtime, int device, int64_t byte_count)
      : runtime_(runtime),
        memory_(runtime.allocate_pinned(byte_count)),
        copied_(runtime.create_event(device)) {}
  ~PinnedBuffer() {
    if (!ends_in_time()) return;  // the device is stuck: what it may yet touch stays
    runtime_.destroy_event(copied_);
    runtime_.free_pinned(memory_);
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* memory() const { return static_cast<std::byte*>(memory_); }
  bool is_copied() const { return runtime_.query(copied_); }
  void copy(void* to, const void* from, int64_t byte_count, device::Stream stream) {
    runtime_.copy(to, from, byte_count, stream);
    runtime_.record(copied_, stream);
  }

 private:
  bool ends_in_time() const noexcept {
    const auto give_up = std::chrono::steady_clock::now() + kPatience;
    try {
      for (Backoff backoff(Backoff::Kind::waiting); !is_copied(); backoff.pause(false)) {
        if (std::chrono::steady_clock::now() > give_up) return false;
      }
    } catch (const std::exception&) {
      // A device that is lost touches nothing any more.
    }
    return true;
  }

  device::Runtime& runtime_;
  void* memory_;
  device::Event copied_;
};

/// Spans of one bucket whose gradients have one dtype: what one launch reads.
struct Launch {
  c10::ScalarType grad_dtype;
  int64_t first_span, span_count;
};

/// The device's table of a step: the scalars of each group, then the spans of all launches. Where gradients
/// are reduced into shards the spans are the same in every step, and are written once.
class DeviceUpdater final : public ShardUpdater {
 public:
  DeviceUpdater(
      const ShardParts& parts, DeviceExecutor& executor, Communicator& communicator, DeviceKernels& kernels)
      : parts_(parts),
        executor_(executor),
        communicator_(communicator),
        kernels_(kernels),
        launches_(parts.layout.buckets.size()) {
    int64_t pieces = 0, workspace = 1;
    for (const Bucket& bucket : parts.layout.buckets) {
      int64_t own = 0;
      for (const Piece& piece : bucket.pieces) own += piece.slice == parts.rank ? 1 : 0;
      pieces += own;
      workspace = std::max(workspace, kernels.sum_of_squares_workspace_numel(bucket.shard_numel, own));
    }
    scalar_bytes_ = static_cast<int64_t>(parts.groups * sizeof(kernels::StepScalars));
    table_bytes_ = scalar_bytes_ + pieces * static_cast<int64_t>(sizeof(cuda::GradientSpan));
    table_ = executor.empty(table_bytes_, at::kByte);
    workspace_ = executor.empty(workspace, at::kDouble);
    sum_ = executor.empty(1, at::kDouble);
    norm_ = executor.empty(sizeof(cuda::GradientNorm), at::kByte);
    norm_on_host_.emplace(executor.runtime(), executor.device().index(), sizeof(cuda::GradientNorm));
    if (!direct()) collect_spans();
  }

  void begin_step(const std::vector<kernels::StepScalars>& scalars) override {
    scalars_ = scalars;
    clips_ = false;
    if (direct()) collect_spans();
    upload();
  }

  at::Tensor sum_of_squares() override {
    executor_.fill(sum_, 0);
    for (size_t b = 0; b < launches_.size(); ++b) {
      for (const Launch& launch : launches_[b]) {
        kernels_.sum_of_squares(launch.grad_dtype, spans() + launch.first_span, launch.span_count,
            parts_.layout.buckets[b].shard_numel, workspace_.mutable_data_ptr<double>(),
            sum_.mutable_data_ptr<double>(), stream());
      }
    }
    return sum_;
  }

  void use_norm(const at::Tensor& sum, std::optional<double> max_norm, bool skip_non_finite) override {
    kernels_.gradient_norm(sum.const_data_ptr<double>(), scalars(0), max_norm, skip_non_finite,
        narrowest_state(), norm_pointer(), stream());
    clips_ = true;
    norm_is_read_ = false;
  }

  // Rule 6. Gives up when the communicator does: the sum over all ranks may never come.
  double norm() override {
    if (!norm_is_read_) {
      norm_on_host_->copy(
          norm_on_host_->memory(), norm_pointer(), sizeof(cuda::GradientNorm), executor_.current_stream());
      for (Backoff backoff(Backoff::Kind::waiting); !norm_on_host_->is_copied(); backoff.pause(false)) {
        communicator_.check();
      }
      communicator_.check();
      norm_is_read_ = true;
    }
    cuda::GradientNorm read{};
    std::memcpy(&read, norm_on_host_->memory(), sizeof(read));
    return read.norm;
  }

  void update(int64_t bucket) override {
    const Bucket& layout = parts_.layout.buckets[static_cast<size_t>(bucket)];
    cuda::ShardUpdate shard{};
    shard.y = parts_.parameters.slice(bucket, parts_.rank).data_ptr();
    for (size_t i = 0; i < parts_.algorithm.state().size(); ++i)
      shard.state[i] = state_of(bucket)[i].data_ptr();
    shard.numel = layout.shard_numel;
    shard.scalars = scalars(layout.group);
    shard.norm = clips_ ? norm_pointer() : nullptr;
    for (const Launch& launch : launches_[static_cast<size_t>(bucket)]) {
      shard.spans = spans() + launch.first_span;
      shard.span_count = launch.span_count;
      kernels_.update(parts_.algorithm.rule(), scalars_[static_cast<size_t>(layout.group)], layout.dtype,
          launch.grad_dtype, shard, stream());
    }
  }

  void interpolate(int64_t bucket, const at::Tensor& out, const Interpolation& where) override {
    const ShardState& state = state_of(bucket);
    kernels_.interpolate(out.scalar_type(), out.data_ptr(), state[where.x].const_data_ptr(),
        state[where.z].const_data_ptr(), where.weight, out.numel(), stream());
  }

 private:
  bool direct() const { return launches_.empty() || !parts_.gradients.shard(0).defined(); }
  const ShardState& state_of(int64_t bucket) const { return parts_.state[static_cast<size_t>(bucket)]; }
  cuda::Stream stream() const { return static_cast<cuda::Stream>(executor_.current_stream().handle); }

  c10::ScalarType narrowest_state() const {
    const auto& buckets = parts_.layout.buckets;
    const bool all_wide = std::all_of(buckets.begin(), buckets.end(),
        [](const Bucket& bucket) { return kernels::state_dtype(bucket.dtype) == c10::ScalarType::Double; });
    return all_wide ? c10::ScalarType::Double : c10::ScalarType::Float;
  }

  const kernels::StepScalars* scalars(int64_t group) const {
    return static_cast<const kernels::StepScalars*>(table_.const_data_ptr()) + group;
  }
  const cuda::GradientSpan* spans() const {
    return reinterpret_cast<const cuda::GradientSpan*>(
        static_cast<const std::byte*>(table_.const_data_ptr()) + scalar_bytes_);
  }
  cuda::GradientNorm* norm_pointer() const { return static_cast<cuda::GradientNorm*>(norm_.data_ptr()); }

  // A launch reads gradients of one dtype: where they are not reduced, a bucket's can be of two.
  void collect_spans() {
    host_spans_.clear();
    for (size_t b = 0; b < launches_.size(); ++b) {
      launches_[b].clear();
      std::vector<GradientSpan> left = parts_.gradients.spans(static_cast<int64_t>(b));
      while (!left.empty()) {
        const c10::ScalarType dtype = left.front().source.scalar_type();
        const auto others = std::stable_partition(left.begin(), left.end(),
            [dtype](const GradientSpan& span) { return span.source.scalar_type() == dtype; });
        const auto first = static_cast<int64_t>(host_spans_.size());
        for (auto span = left.begin(); span != others; ++span) add_span(*span);
        launches_[b].push_back({dtype, first, static_cast<int64_t>(host_spans_.size()) - first});
        left.erase(left.begin(), others);
      }
    }
    spans_are_uploaded_ = false;
  }

  void add_span(const GradientSpan& span) {
    executor_.keep(span.source);  // rule 4
    const auto element = [&](int64_t index) {
      return static_cast<const std::byte*>(span.source.const_data_ptr()) + index * span.source.element_size();
    };
    host_spans_.push_back(
        {element(span.source_begin), span.begin, span.numel, span.flag < 0 ? nullptr : element(span.flag)});
  }

  void upload() {
    PinnedBuffer& buffer = free_buffer();
    int64_t byte_count = scalar_bytes_;
    std::memcpy(buffer.memory(), scalars_.data(), static_cast<size_t>(scalar_bytes_));
    if (!spans_are_uploaded_) {
      const size_t span_bytes = host_spans_.size() * sizeof(cuda::GradientSpan);
      if (span_bytes > 0) std::memcpy(buffer.memory() + scalar_bytes_, host_spans_.data(), span_bytes);
      byte_count += static_cast<int64_t>(span_bytes);
    }
    buffer.copy(table_.data_ptr(), buffer.memory(), byte_count, executor_.current_stream());
    spans_are_uploaded_ = true;
  }

  // Rule 5. One more where the device has not got to any: the host need not wait for it.
  PinnedBuffer& free_buffer() {
    for (const auto& buffer : uploads_) {
      if (buffer->is_copied()) return *buffer;
    }
    return *uploads_.emplace_back(
        std::make_unique<PinnedBuffer>(executor_.runtime(), executor_.device().index(), table_bytes_));
  }

  const ShardParts parts_;
  DeviceExecutor& executor_;
  Communicator& communicator_;
  DeviceKernels& kernels_;
  int64_t scalar_bytes_ = 0, table_bytes_ = 0;
  at::Tensor table_, workspace_, sum_, norm_;
  std::vector<std::vector<Launch>> launches_;  ///< by bucket
  std::vector<cuda::GradientSpan> host_spans_;
  bool spans_are_uploaded_ = false;
  std::vector<kernels::StepScalars> scalars_;
  bool clips_ = false;
  std::vector<std::unique_ptr<PinnedBuffer>> uploads_;
  std::optional<PinnedBuffer> norm_on_host_;
  bool norm_is_read_ = false;
};

}  // namespace

std::unique_ptr<ShardUpdater> make_device_updater(
    const ShardParts& parts, DeviceExecutor& executor, Communicator& communicator, DeviceKernels* kernels) {
  static auto* library = new DeviceKernels;
  return std::make_unique<DeviceUpdater>(
      parts, executor, communicator, kernels == nullptr ? *library : *kernels);
}

}  // namespace zerosched::detail
