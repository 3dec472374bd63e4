#include "engine/shard_updater.h"

#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstddef>
#include <utility>

namespace zerosched::detail {
namespace {

template <typename Pointer>
Pointer at_element(Pointer base, int64_t index, c10::ScalarType dtype) {
  using Byte =
      std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const std::byte, std::byte>;
  return static_cast<Byte*>(base) + index * static_cast<int64_t>(c10::elementSize(dtype));
}

// As torch::nn::utils::clip_grad_norm_: max_norm / (norm + 1e-6), at most 1, NaN if the norm is.
double clip_factor(double norm, std::optional<double> max_norm) {
  if (!max_norm) return 1;
  const double factor = *max_norm / (norm + 1e-6);
  return factor >= 1 ? 1 : factor;
}

/// Gradients of the elements [begin, begin + numel) of a shard, all of parameters that were used.
struct UsedRange {
  int64_t begin, numel;
  c10::ScalarType dtype;
  const void* values;
};

class HostUpdater final : public ShardUpdater {
 public:
  explicit HostUpdater(const ShardParts& parts) : parts_(parts) {}

  void begin_step(const std::vector<kernels::StepScalars>& scalars) override { scalars_ = scalars; }

  at::Tensor sum_of_squares() override {
    at::Tensor sum = at::zeros({1}, at::kDouble);
    for (size_t b = 0; b < parts_.layout.buckets.size(); ++b) {
      for (const UsedRange& range : used_ranges(static_cast<int64_t>(b))) {
        *sum.mutable_data_ptr<double>() += kernels::sum_of_squares(range.dtype, range.values, range.numel);
      }
    }
    return sum;
  }

  // The sum is in double, so the norm is finite if all elements are, and the same on every rank.
  void use_norm(const at::Tensor& sum, std::optional<double> max_norm, bool) override {
    norm_ = std::sqrt(*sum.const_data_ptr<double>()) * scalars_.front().grad_scale;
    for (kernels::StepScalars& scalars : scalars_) scalars.grad_scale *= clip_factor(norm_, max_norm);
  }

  double norm() override { return norm_; }

  void update(int64_t bucket) override {
    const Bucket& layout = parts_.layout.buckets[static_cast<size_t>(bucket)];
    const at::Tensor y = parts_.parameters.slice(bucket, parts_.rank);
    for (const UsedRange& used : used_ranges(bucket)) {
      kernels::UpdateRange range{layout.dtype, used.dtype, at_element(y.data_ptr(), used.begin, layout.dtype),
          used.values, {}, used.numel};
      for (size_t i = 0; i < parts_.algorithm.state().size(); ++i) {
        const at::Tensor& state = state_of(bucket)[i];
        range.state[i] = at_element(state.data_ptr(), used.begin, state.scalar_type());
      }
      kernels::update(parts_.algorithm.rule(), range, scalars_[static_cast<size_t>(layout.group)]);
    }
  }

  void interpolate(int64_t bucket, const at::Tensor& out, const Interpolation& where) override {
    const ShardState& state = state_of(bucket);
    kernels::interpolate(out.scalar_type(), out.data_ptr(), state[where.x].const_data_ptr(),
        state[where.z].const_data_ptr(), where.weight, out.numel());
  }

 private:
  const ShardState& state_of(int64_t bucket) const { return parts_.state[static_cast<size_t>(bucket)]; }

  std::vector<UsedRange> used_ranges(int64_t bucket) const {
    const at::Tensor& shard = parts_.gradients.shard(bucket);
    const std::vector<GradientSpan> spans = parts_.gradients.spans(bucket);
    return shard.defined() ? joined(spans, shard, bucket) : separate(spans);
  }

  static std::vector<UsedRange> separate(const std::vector<GradientSpan>& spans) {
    std::vector<UsedRange> ranges;
    for (const GradientSpan& span : spans) {
      const c10::ScalarType dtype = span.source.scalar_type();
      ranges.push_back({span.begin, span.numel, dtype,
          at_element(span.source.const_data_ptr(), span.source_begin, dtype)});
    }
    return ranges;
  }

  // Runs of used parameters, over the padding between them, which is zero. One range if all were used.
  std::vector<UsedRange> joined(
      const std::vector<GradientSpan>& spans, const at::Tensor& shard, int64_t bucket) const {
    const c10::ScalarType dtype = shard.scalar_type();
    const int64_t flag_begin = parts_.layout.buckets[static_cast<size_t>(bucket)].shard_numel;
    const at::Tensor flags = shard.narrow(0, flag_begin, shard.numel() - flag_begin).to(at::kFloat);
    const float* used = flags.const_data_ptr<float>();
    std::vector<UsedRange> ranges;
    const auto add = [&](int64_t begin, int64_t end) {
      ranges.push_back({begin, end - begin, dtype, at_element(shard.const_data_ptr(), begin, dtype)});
    };
    bool all_used = true;
    int64_t begin = -1;  // of the run that is open
    int64_t end = 0;
    for (const GradientSpan& span : spans) {
      if (used[span.flag - flag_begin] > 0) {
        if (begin < 0) begin = span.begin;
        end = span.begin + span.numel;
      } else {
        all_used = false;
        if (begin >= 0) add(begin, end);
        begin = -1;
      }
    }
    if (begin < 0) return ranges;
    all_used ? add(0, flag_begin) : add(begin, end);
    return ranges;
  }

  const ShardParts parts_;
  std::vector<kernels::StepScalars> scalars_;
  double norm_ = 0;
};

}  // namespace

std::unique_ptr<ShardUpdater> make_host_updater(const ShardParts& parts) {
  return std::make_unique<HostUpdater>(parts);
}

}  // namespace zerosched::detail
