#include "comm/backoff.h"
#include "engine/pinned_buffer.h"
#include "engine/shard_updater.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

namespace zerosched::detail {
namespace {

namespace cuda = kernels::cuda;

/// Spans of one bucket whose gradients have one dtype: what one launch reads.
struct Launch {
  c10::ScalarType grad_dtype;
  int64_t first_span, span_count;
};

/// The device's table of a step: the scalars of each group, then the spans of all launches. Where gradients
/// are reduced into shards the spans are the same in every step, and are written once.
class DeviceUpdater final : public ShardUpdater {
 public:
  DeviceUpdater(const ShardParts& parts, DeviceExecutor& executor, Communicator& communicator,
      DeviceKernels& kernels, at::Tensor not_finite)
      : parts_(parts),
        executor_(executor),
        communicator_(communicator),
        kernels_(kernels),
        not_finite_(std::move(not_finite)),
        launches_(parts.layout.buckets.size()),
        uploads_(executor.runtime(), executor.device().index()) {
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

  void clamp_gradients(double limit) override {
    for_each_launch([&](const Launch& launch, const Bucket& bucket) {
      kernels_.clamp_gradient(launch.grad_dtype, spans() + launch.first_span, launch.span_count,
          bucket.shard_numel, limit, stream());
    });
  }

  at::Tensor norm_terms(double norm_type) override {
    executor_.fill(sum_, 0);
    auto* sum = sum_.mutable_data_ptr<double>();
    auto* workspace = workspace_.mutable_data_ptr<double>();
    for_each_launch([&](const Launch& launch, const Bucket& bucket) {
      const cuda::GradientSpan* first = spans() + launch.first_span;
      if (std::isinf(norm_type)) {
        kernels_.max_abs(
            launch.grad_dtype, first, launch.span_count, bucket.shard_numel, workspace, sum, stream());
      } else if (norm_type == 2) {
        kernels_.sum_of_squares(
            launch.grad_dtype, first, launch.span_count, bucket.shard_numel, workspace, sum, stream());
      } else {
        kernels_.sum_of_powers(launch.grad_dtype, norm_type, first, launch.span_count, bucket.shard_numel,
            workspace, sum, stream());
      }
    });
    return sum_;
  }

  at::Tensor squares_by_parameter(int64_t parameters) override {
    at::Tensor squares = executor_.empty(parameters, at::kDouble);
    executor_.fill(squares, 0);
    for_each_launch([&](const Launch& launch, const Bucket& bucket) {
      for (int64_t i = launch.first_span; i < launch.first_span + launch.span_count; ++i) {
        kernels_.sum_of_squares(launch.grad_dtype, spans() + i, 1, bucket.shard_numel,
            workspace_.mutable_data_ptr<double>(),
            squares.mutable_data_ptr<double>() + span_parameters_[static_cast<size_t>(i)], stream());
      }
    });
    return squares;
  }

  void begin_step(const std::vector<kernels::StepScalars>& scalars) override {
    scalars_ = scalars;
    clips_ = false;
    if (direct()) collect_spans();
    upload();
  }

  at::Tensor sum_of_squares() override { return norm_terms(2); }

  void use_norm(const at::Tensor& sum, std::optional<double> max_norm, bool skip_non_finite) override {
    kernels_.gradient_norm(sum.const_data_ptr<double>(), scalars(0), max_norm, skip_non_finite,
        narrowest_state(), norm_pointer(), stream());
    clips_ = true;
    norm_is_read_ = false;
  }

  // Rule 6. Gives up when the communicator does: the sum over all ranks may never come.
  double norm() override { return read_norm().norm; }
  bool overflows() override { return read_norm().found_inf != 0; }
  at::Tensor norm_on_device() const override { return clips_ ? norm_ : at::Tensor(); }

  cuda::GradientNorm read_norm() {
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
    return read;
  }

  bool update(int64_t bucket) override {
    const Bucket& layout = parts_.layout.buckets[static_cast<size_t>(bucket)];
    cuda::ShardUpdate shard{};
    shard.y = parts_.parameters.slice(bucket, parts_.rank).data_ptr();
    for (size_t i = 0; i < parts_.algorithm.state().size(); ++i)
      shard.state[i] = state_of(bucket)[i].data_ptr();
    shard.numel = layout.shard_numel;
    shard.scalars = scalars(layout.group);
    shard.norm = clips_ ? norm_pointer() : nullptr;
    shard.not_finite = not_finite_.mutable_data_ptr<int32_t>();
    for (const Launch& launch : launches_[static_cast<size_t>(bucket)]) {
      shard.spans = spans() + launch.first_span;
      shard.span_count = launch.span_count;
      kernels_.update(parts_.algorithm.rule(), scalars_[static_cast<size_t>(layout.group)], layout.dtype,
          launch.grad_dtype, shard, stream());
    }
    return true;
  }

  void interpolate(int64_t bucket, const at::Tensor& out, const Interpolation& where) override {
    const ShardState& state = state_of(bucket);
    kernels_.interpolate(out.scalar_type(), out.data_ptr(), state[where.x].const_data_ptr(),
        state[where.z].const_data_ptr(), where.weight, out.numel(), stream());
  }

  int64_t first_difference(int64_t bucket, const at::Tensor& values, const Interpolation& where) override {
    const at::Tensor expected = executor_.empty(values.numel(), values.scalar_type());
    interpolate(bucket, expected, where);
    const at::Tensor a = executor_.to_host(expected), b = executor_.to_host(values);
    const int64_t found = first_difference_of_bytes(a.const_data_ptr(), b.const_data_ptr(), a.nbytes());
    return found < 0 ? -1 : found / static_cast<int64_t>(a.element_size());
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

  template <typename Function>
  void for_each_launch(const Function& function) const {
    for (size_t b = 0; b < launches_.size(); ++b) {
      for (const Launch& launch : launches_[b]) function(launch, parts_.layout.buckets[b]);
    }
  }

  // A launch reads gradients of one dtype: where they are not reduced, a bucket's can be of two.
  void collect_spans() {
    host_spans_.clear();
    span_parameters_.clear();
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
    span_parameters_.push_back(span.parameter);
    host_spans_.push_back(
        {element(span.source_begin), span.begin, span.numel, span.flag < 0 ? nullptr : element(span.flag)});
  }

  void upload() {
    PinnedBuffer& buffer = uploads_.free_buffer(table_bytes_);  // rule 5
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

  const ShardParts parts_;
  DeviceExecutor& executor_;
  Communicator& communicator_;
  DeviceKernels& kernels_;
  at::Tensor not_finite_;  ///< one int32
  int64_t scalar_bytes_ = 0, table_bytes_ = 0;
  at::Tensor table_, workspace_, sum_, norm_;
  std::vector<std::vector<Launch>> launches_;  ///< by bucket
  std::vector<cuda::GradientSpan> host_spans_;
  std::vector<int64_t> span_parameters_;  ///< of host_spans_
  bool spans_are_uploaded_ = false;
  std::vector<kernels::StepScalars> scalars_;
  bool clips_ = false;
  PinnedBuffers uploads_;
  std::optional<PinnedBuffer> norm_on_host_;
  bool norm_is_read_ = false;
};

}  // namespace

std::unique_ptr<ShardUpdater> make_device_updater(const ShardParts& parts, DeviceExecutor& executor,
    Communicator& communicator, DeviceKernels& kernels, const at::Tensor& not_finite) {
  return std::make_unique<DeviceUpdater>(parts, executor, communicator, kernels, not_finite);
}

}  // namespace zerosched::detail
