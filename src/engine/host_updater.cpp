#include "engine/shard_updater.h"
#include "kernels/clipping.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

namespace zerosched::detail {
namespace {

template <typename Pointer>
Pointer at_element(Pointer base, int64_t index, c10::ScalarType dtype) {
  using Byte =
      std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const std::byte, std::byte>;
  return static_cast<Byte*>(base) + index * static_cast<int64_t>(c10::elementSize(dtype));
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

  void clamp_gradients(double limit) override {
    for_each_range([&](const UsedRange& range) {
      kernels::clamp_gradient(range.dtype, const_cast<void*>(range.values), range.numel, limit);
    });
  }

  at::Tensor sum_of_squares() override { return norm_terms(2); }

  at::Tensor norm_terms(double norm_type) override {
    at::Tensor terms = at::zeros({1}, at::kDouble);
    double& all = *terms.mutable_data_ptr<double>();
    for_each_range([&](const UsedRange& range) {
      if (std::isinf(norm_type)) {
        const double largest = kernels::max_abs(range.dtype, range.values, range.numel);
        if (!(largest <= all)) all = largest;  // NaN too
      } else if (norm_type == 2) {
        all += kernels::sum_of_squares(range.dtype, range.values, range.numel);
      } else {
        all += kernels::sum_of_powers(range.dtype, range.values, range.numel, norm_type);
      }
    });
    return terms;
  }

  at::Tensor squares_by_parameter(int64_t parameters) override {
    at::Tensor squares = at::zeros({parameters}, at::kDouble);
    for (int64_t b = 0; b < bucket_count(); ++b) {
      for (const GradientSpan& span : parts_.gradients.spans(b)) {
        const c10::ScalarType dtype = span.source.scalar_type();
        squares.mutable_data_ptr<double>()[span.parameter] += kernels::sum_of_squares(
            dtype, at_element(span.source.const_data_ptr(), span.source_begin, dtype), span.numel);
      }
    }
    return squares;
  }

  // The same on every rank, because the sum is.
  void use_norm(const at::Tensor& sum, std::optional<double> max_norm, bool) override {
    const double scale = scalars_.front().grad_scale;
    norm_ = std::sqrt(*sum.const_data_ptr<double>()) * scale;
    overflows_ = !kernels::can_be_used(norm_, scale, parts_.narrowest_state() == c10::ScalarType::Double);
    if (!max_norm) return;
    for (kernels::StepScalars& scalars : scalars_)
      scalars.grad_scale *= kernels::clip_factor(norm_, *max_norm);
  }

  at::Tensor loss_terms(const std::vector<double>& weights) override {
    at::Tensor terms = at::zeros({2}, at::kDouble);
    auto* sums = terms.mutable_data_ptr<double>();
    const Interpolation where = parts_.algorithm.interpolation(Point::x, {});
    for (int64_t b = 0; b < bucket_count(); ++b) {
      const ShardState& state = state_of(b);
      const double weight = weights[static_cast<size_t>(parts_.layout.bucket(b).group)];
      for (const UsedRange& range : used_ranges(b)) {
        const c10::ScalarType dtype = state[where.x].scalar_type();
        sums[0] += kernels::sum_of_powers(range.dtype, range.values, range.numel, 1);
        sums[1] += kernels::inner_product(range.dtype, range.values,
            at_element(state[where.z].const_data_ptr(), range.begin, dtype),
            at_element(state[where.x].const_data_ptr(), range.begin, dtype), range.numel, weight);
      }
    }
    return terms;
  }

  void replace_scalars(const std::vector<kernels::StepScalars>& scalars) override {
    const double grad_scale = scalars_.front().grad_scale;
    scalars_ = scalars;
    for (kernels::StepScalars& each : scalars_) each.grad_scale = grad_scale;
  }

  double norm() override { return norm_; }
  void expect_norm() override {}
  bool overflows() override { return overflows_; }
  at::Tensor norm_on_device() const override { return {}; }

  bool update(const std::vector<int64_t>& buckets) override {
    bool finite = true;
    for (const int64_t bucket : buckets) finite &= update_bucket(bucket);
    return finite;
  }

  void interpolate(int64_t bucket, const at::Tensor& out, const Interpolation& where) override {
    const ShardState& state = state_of(bucket);
    kernels::interpolate(out.scalar_type(), out.data_ptr(), state[where.x].const_data_ptr(),
        state[where.z].const_data_ptr(), where.weight, out.numel());
  }

  // In small pieces: a whole shard would be memory that steps do not need otherwise.
  int64_t first_difference(int64_t bucket, const at::Tensor& values, const Interpolation& where) override {
    constexpr int64_t kPieceNumel = 4096;
    const ShardState& state = state_of(bucket);
    const c10::ScalarType dtype = values.scalar_type(), state_dtype = state[where.x].scalar_type();
    const size_t bytes = values.element_size();
    std::vector<std::byte> piece(static_cast<size_t>(kPieceNumel) * bytes);
    for (int64_t begin = 0; begin < values.numel(); begin += kPieceNumel) {
      const int64_t numel = std::min(kPieceNumel, values.numel() - begin);
      kernels::interpolate(dtype, piece.data(),
          at_element(state[where.x].const_data_ptr(), begin, state_dtype),
          at_element(state[where.z].const_data_ptr(), begin, state_dtype), where.weight, numel);
      const int64_t found = first_difference_of_bytes(piece.data(),
          at_element(values.const_data_ptr(), begin, dtype), static_cast<size_t>(numel) * bytes);
      if (found >= 0) return begin + found / static_cast<int64_t>(bytes);
    }
    return -1;
  }

 private:
  bool update_bucket(int64_t bucket) {
    bool finite = true;
    const Bucket& layout = parts_.layout.bucket(bucket);
    const at::Tensor y = parts_.parameters.slice(bucket, parts_.rank);
    for (const UsedRange& used : used_ranges(bucket)) {
      kernels::UpdateRange range{layout.dtype, used.dtype, at_element(y.data_ptr(), used.begin, layout.dtype),
          used.values, {}, used.numel};
      for (size_t i = 0; i < parts_.algorithm.state().size(); ++i) {
        const at::Tensor& state = state_of(bucket)[i];
        range.state[i] = at_element(state.data_ptr(), used.begin, state.scalar_type());
      }
      finite &= kernels::update(parts_.algorithm.rule(), range, scalars_[static_cast<size_t>(layout.group)]);
    }
    return finite;
  }

  const ShardState& state_of(int64_t bucket) const { return parts_.state[static_cast<size_t>(bucket)]; }

  int64_t bucket_count() const { return parts_.layout.bucket_count(); }

  template <typename Function>
  void for_each_range(const Function& function) const {
    for (int64_t b = 0; b < bucket_count(); ++b) {
      for (const UsedRange& range : used_ranges(b)) function(range);
    }
  }

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
    const int64_t flag_begin = parts_.layout.bucket(bucket).shard_numel;
    const int64_t flag_numel = parts_.layout.bucket(bucket).flag_numel;
    const at::Tensor flags = shard.narrow(0, flag_begin, flag_numel).to(at::kFloat);
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
  bool overflows_ = false;
};

}  // namespace

c10::ScalarType ShardParts::narrowest_state() const {
  const bool all_double = std::all_of(layout.buckets.begin(), layout.buckets.end(),
      [](const Bucket& bucket) { return kernels::state_dtype(bucket.dtype) == c10::ScalarType::Double; });
  return all_double ? c10::ScalarType::Double : c10::ScalarType::Float;
}

int64_t first_difference_of_bytes(const void* a, const void* b, size_t count) {
  if (std::memcmp(a, b, count) == 0) return -1;
  const auto* first = static_cast<const std::byte*>(a);
  return std::mismatch(first, first + count, static_cast<const std::byte*>(b)).first - first;
}

std::unique_ptr<ShardUpdater> make_host_updater(const ShardParts& parts) {
  return std::make_unique<HostUpdater>(parts);
}

}  // namespace zerosched::detail
