#include "engine/span_table.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace zerosched::detail {

namespace cuda = kernels::cuda;

SpanTable::SpanTable(const ShardParts& parts, DeviceExecutor& executor)
    : parts_(parts),
      executor_(executor),
      state_begins_(state_begins(parts.layout)),
      scalar_bytes_(static_cast<int64_t>(parts.groups * sizeof(kernels::StepScalars))),
      uploads_(executor.runtime(), executor.device().index()) {
  for (size_t b = 0; b < parts.layout.buckets.size(); ++b) {
    const Bucket& bucket = parts.layout.buckets[b];
    for (const Piece& piece : bucket.pieces) most_spans_ += piece.slice == parts.rank ? 1 : 0;
    most_numel_ += bucket.shard_numel;
    y_.push_back(
        static_cast<std::byte*>(parts.parameters.slice(static_cast<int64_t>(b), parts.rank).data_ptr()));
  }
  table_ = executor.empty(
      scalar_bytes_ + most_spans_ * static_cast<int64_t>(sizeof(cuda::SpanOnDevice)), at::kByte);
  if (!direct()) collect();
}

bool SpanTable::direct() const { return y_.empty() || !parts_.gradients.shard(0).defined(); }

const kernels::StepScalars* SpanTable::scalars(int64_t group) const {
  return static_cast<const kernels::StepScalars*>(table_.const_data_ptr()) + group;
}

void SpanTable::upload(const std::vector<kernels::StepScalars>& scalars) {
  if (direct()) collect();
  const auto span_bytes = static_cast<int64_t>(spans_.size() * sizeof(cuda::SpanOnDevice));
  const int64_t byte_count = scalar_bytes_ + (is_uploaded_ ? 0 : span_bytes);
  PinnedBuffer& buffer = uploads_.free_buffer(static_cast<int64_t>(table_.nbytes()));  // rule 5
  std::memcpy(buffer.memory(), scalars.data(), static_cast<size_t>(scalar_bytes_));
  if (byte_count > scalar_bytes_) {
    std::memcpy(buffer.memory() + scalar_bytes_, spans_.data(), static_cast<size_t>(span_bytes));
  }
  buffer.copy(table_.data_ptr(), buffer.memory(), byte_count, executor_.current_stream());
  is_uploaded_ = true;
}

// A launch reads gradients of one dtype: where they are not reduced, a bucket's can be of two.
void SpanTable::collect() {
  spans_.clear();
  table_parts_.clear();
  parts_of_bucket_.clear();
  for (size_t b = 0; b < y_.size(); ++b) {
    parts_of_bucket_.push_back(table_parts_.size());
    std::vector<GradientSpan> left = parts_.gradients.spans(static_cast<int64_t>(b));
    while (!left.empty()) {
      const c10::ScalarType dtype = left.front().source.scalar_type();
      const auto others = std::stable_partition(left.begin(), left.end(),
          [dtype](const GradientSpan& span) { return span.source.scalar_type() == dtype; });
      const auto first = static_cast<int64_t>(spans_.size());
      for (auto span = left.begin(); span != others; ++span) add(*span, b);
      table_parts_.push_back(
          {dtype, static_cast<int64_t>(b), first, static_cast<int64_t>(spans_.size()) - first});
      left.erase(left.begin(), others);
    }
  }
  parts_of_bucket_.push_back(table_parts_.size());
  is_uploaded_ = false;
}

void SpanTable::add(const GradientSpan& span, size_t bucket) {
  executor_.keep(span.source);  // rule 4
  const auto element = [&](int64_t index) {
    return static_cast<const std::byte*>(span.source.const_data_ptr()) + index * span.source.element_size();
  };
  const auto param_bytes = static_cast<int64_t>(c10::elementSize(parts_.layout.buckets[bucket].dtype));
  spans_.push_back({element(span.source_begin), state_begins_[bucket] + span.begin, span.numel,
      span.flag < 0 ? nullptr : element(span.flag), y_[bucket] + span.begin * param_bytes, span.parameter});
}

SpanRun SpanTable::run_of(const Part& first, const Part& last) const {
  const auto* table = reinterpret_cast<const cuda::SpanOnDevice*>(
      static_cast<const std::byte*>(table_.const_data_ptr()) + scalar_bytes_);
  const int64_t end = last.first_span + last.span_count;
  const cuda::SpanOnDevice& last_span = spans_[static_cast<size_t>(end - 1)];
  return {first.grad_dtype, first.bucket, table + first.first_span, end - first.first_span,
      last_span.begin + last_span.numel - spans_[static_cast<size_t>(first.first_span)].begin};
}

std::vector<SpanRun> SpanTable::runs() const {
  std::vector<SpanRun> runs;
  for (size_t first = 0; first < table_parts_.size();) {
    size_t end = first + 1;
    while (end < table_parts_.size() && table_parts_[end].grad_dtype == table_parts_[first].grad_dtype) ++end;
    runs.push_back(run_of(table_parts_[first], table_parts_[end - 1]));
    first = end;
  }
  return runs;
}

std::vector<SpanRun> SpanTable::runs_of(std::vector<int64_t> buckets) const {
  std::sort(buckets.begin(), buckets.end());
  std::vector<size_t> chosen;  // parts, ascending
  for (const int64_t bucket : buckets) {
    for (size_t p = parts_of_bucket_[static_cast<size_t>(bucket)];
         p < parts_of_bucket_[static_cast<size_t>(bucket) + 1]; ++p) {
      chosen.push_back(p);
    }
  }
  const auto joins = [&](size_t part, size_t next) {
    const Part &a = table_parts_[part], &b = table_parts_[next];
    const Bucket& of_a = parts_.layout.bucket(a.bucket);
    const Bucket& of_b = parts_.layout.bucket(b.bucket);
    return next == part + 1 && a.grad_dtype == b.grad_dtype && of_a.dtype == of_b.dtype &&
           of_a.group == of_b.group;
  };
  std::vector<SpanRun> runs;
  for (size_t first = 0; first < chosen.size();) {
    size_t last = first;
    while (last + 1 < chosen.size() && joins(chosen[last], chosen[last + 1])) ++last;
    runs.push_back(run_of(table_parts_[chosen[first]], table_parts_[chosen[last]]));
    first = last + 1;
  }
  return runs;
}

}  // namespace zerosched::detail
