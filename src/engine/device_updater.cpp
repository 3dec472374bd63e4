#include "base/backoff.h"
#include "engine/pinned_buffer.h"
#include "engine/shard_updater.h"
#include "engine/span_table.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

namespace zerosched::detail {
namespace {

namespace cuda = kernels::cuda;

class DeviceUpdater final : public ShardUpdater {
 public:
  DeviceUpdater(const ShardParts& parts, DeviceExecutor& executor, Communicator& communicator,
      DeviceKernels& kernels, at::Tensor not_finite)
      : parts_(parts),
        executor_(executor),
        communicator_(communicator),
        kernels_(kernels),
        not_finite_(std::move(not_finite)),
        table_(parts, executor) {
    const int64_t workspace =
        kernels.sum_of_squares_workspace_numel(table_.most_numel(), table_.most_spans());
    workspace_ = executor.empty(std::max(workspace, int64_t{1}), at::kDouble);
    sum_ = executor.empty(1, at::kDouble);
    norm_ = executor.empty(sizeof(cuda::GradientNorm), at::kByte);
    norm_on_host_.emplace(executor.runtime(), executor.device().index(), sizeof(cuda::GradientNorm));
  }

  void clamp_gradients(double limit) override {
    for (const SpanRun& run : table_.runs()) {
      kernels_.clamp_gradient(run.grad_dtype, run.spans, run.span_count, run.range_numel, limit, stream());
    }
  }

  at::Tensor norm_terms(double norm_type) override {
    executor_.fill(sum_, 0);
    auto* sum = sum_.mutable_data_ptr<double>();
    auto* workspace = workspace_.mutable_data_ptr<double>();
    for (const SpanRun& run : table_.runs()) {
      if (std::isinf(norm_type)) {
        kernels_.max_abs(
            run.grad_dtype, run.spans, run.span_count, run.range_numel, workspace, sum, stream());
      } else if (norm_type == 2) {
        kernels_.sum_of_squares(
            run.grad_dtype, run.spans, run.span_count, run.range_numel, workspace, sum, stream());
      } else {
        kernels_.sum_of_powers(
            run.grad_dtype, norm_type, run.spans, run.span_count, run.range_numel, workspace, sum, stream());
      }
    }
    return sum_;
  }

  at::Tensor squares_by_parameter(int64_t parameters) override {
    at::Tensor squares = executor_.empty(parameters, at::kDouble);
    executor_.fill(squares, 0);
    for (const SpanRun& run : table_.runs()) {
      kernels_.squares_by_parameter(run.grad_dtype, run.spans, run.span_count, run.range_numel,
          workspace_.mutable_data_ptr<double>(), squares.mutable_data_ptr<double>(), stream());
    }
    return squares;
  }

  void begin_step(const std::vector<kernels::StepScalars>& scalars) override {
    scalars_ = scalars;
    clips_ = false;
    table_.upload(scalars);
  }

  at::Tensor sum_of_squares() override { return norm_terms(2); }

  at::Tensor loss_terms(const std::vector<double>& weights) override {
    at::Tensor terms = executor_.empty(2, at::kDouble);
    executor_.fill(terms, 0);
    auto* sums = terms.mutable_data_ptr<double>();
    auto* workspace = workspace_.mutable_data_ptr<double>();
    const Interpolation where = parts_.algorithm.interpolation(Point::x, {});
    for (const SpanRun& run : table_.runs_of(all_buckets())) {
      const Bucket& bucket = parts_.layout.bucket(run.first_bucket);
      const ShardState& whole = first_state_of(kernels::state_dtype(bucket.dtype));
      kernels_.sum_of_powers(
          run.grad_dtype, 1, run.spans, run.span_count, run.range_numel, workspace, sums, stream());
      kernels_.inner_product(run.grad_dtype, weights[static_cast<size_t>(bucket.group)],
          whole[where.z].const_data_ptr(), whole[where.x].const_data_ptr(), run.spans, run.span_count,
          run.range_numel, workspace, sums + 1, stream());
    }
    return terms;
  }

  void replace_scalars(const std::vector<kernels::StepScalars>& scalars) override {
    scalars_ = scalars;
    table_.upload(scalars);
  }

  void use_norm(const at::Tensor& sum, std::optional<double> max_norm, bool skip_non_finite) override {
    kernels_.gradient_norm(sum.const_data_ptr<double>(), table_.scalars(0), max_norm, skip_non_finite,
        parts_.narrowest_state(), norm_pointer(), stream());
    clips_ = true;
    norm_is_fetched_ = norm_is_read_ = false;
  }

  void expect_norm() override {
    if (norm_is_fetched_) return;
    norm_on_host_->copy(
        norm_on_host_->memory(), norm_pointer(), sizeof(cuda::GradientNorm), executor_.current_stream());
    norm_is_fetched_ = true;
  }

  // Rule 6. Gives up when the communicator does: the sum over all ranks may never come.
  double norm() override { return read_norm().norm; }
  bool overflows() override { return read_norm().found_inf != 0; }
  at::Tensor norm_on_device() const override { return clips_ ? norm_ : at::Tensor(); }

  cuda::GradientNorm read_norm() {
    if (!norm_is_read_) {
      expect_norm();
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

  bool update(const std::vector<int64_t>& buckets) override {
    cuda::ShardUpdate shard{};
    shard.norm = clips_ ? norm_pointer() : nullptr;
    shard.not_finite = not_finite_.mutable_data_ptr<int32_t>();
    for (const SpanRun& run : table_.runs_of(buckets)) {
      const Bucket& layout = parts_.layout.bucket(run.first_bucket);
      const ShardState& whole = first_state_of(kernels::state_dtype(layout.dtype));
      for (size_t i = 0; i < parts_.algorithm.state().size(); ++i) shard.state[i] = whole[i].data_ptr();
      shard.scalars = table_.scalars(layout.group);
      shard.spans = run.spans;
      shard.span_count = run.span_count;
      shard.range_numel = run.range_numel;
      kernels_.update(parts_.algorithm.rule(), scalars_[static_cast<size_t>(layout.group)], layout.dtype,
          run.grad_dtype, shard, stream());
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
  const ShardState& state_of(int64_t bucket) const { return parts_.state[static_cast<size_t>(bucket)]; }
  cuda::Stream stream() const { return static_cast<cuda::Stream>(executor_.current_stream().handle); }
  cuda::GradientNorm* norm_pointer() const { return static_cast<cuda::GradientNorm*>(norm_.data_ptr()); }

  std::vector<int64_t> all_buckets() const {
    std::vector<int64_t> all(parts_.layout.buckets.size());
    std::iota(all.begin(), all.end(), 0);
    return all;
  }

  // Where the state of all buckets of a dtype begins (make_state), from which spans count.
  const ShardState& first_state_of(c10::ScalarType state_dtype) const {
    const auto& buckets = parts_.layout.buckets;
    const auto first = std::find_if(buckets.begin(), buckets.end(),
        [state_dtype](const Bucket& bucket) { return kernels::state_dtype(bucket.dtype) == state_dtype; });
    return parts_.state[static_cast<size_t>(first - buckets.begin())];
  }

  const ShardParts parts_;
  DeviceExecutor& executor_;
  Communicator& communicator_;
  DeviceKernels& kernels_;
  at::Tensor not_finite_;  ///< one int32
  SpanTable table_;
  at::Tensor workspace_, sum_, norm_;
  std::vector<kernels::StepScalars> scalars_;
  bool clips_ = false;
  std::optional<PinnedBuffer> norm_on_host_;
  bool norm_is_fetched_ = false, norm_is_read_ = false;
};

}  // namespace

std::unique_ptr<ShardUpdater> make_device_updater(const ShardParts& parts, DeviceExecutor& executor,
    Communicator& communicator, DeviceKernels& kernels, const at::Tensor& not_finite) {
  return std::make_unique<DeviceUpdater>(parts, executor, communicator, kernels, not_finite);
}

}  // namespace zerosched::detail
