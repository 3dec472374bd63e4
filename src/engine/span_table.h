#pragma once

#include "engine/executor.h"
#include "engine/pinned_buffer.h"
#include "engine/shard_updater.h"
#include "kernels/cuda/span_on_device.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace zerosched::detail {

/// Spans that one launch goes over: neighbours in the table, whose gradients have one dtype.
struct SpanRun {
  c10::ScalarType grad_dtype;
  int64_t first_bucket;
  const kernels::cuda::SpanOnDevice* spans;  ///< on the device
  int64_t span_count;
  int64_t range_numel;  ///< of the state, from the first span's begin to the last one's end
};

/// The device's table of a step: the scalars of each group, then the spans of all buckets in their order. Where
/// gradients are reduced into shards the spans are the same in every step, and are written once.
class SpanTable {
 public:
  /// What `parts` refers to, and `executor`, must outlive this.
  SpanTable(const ShardParts& parts, DeviceExecutor& executor);

  /// Writes a step's table in the caller's stream.
  void upload(const std::vector<kernels::StepScalars>& scalars);
  const kernels::StepScalars* scalars(int64_t group) const;

  /// All spans in their order, in as few runs as their dtypes allow.
  std::vector<SpanRun> runs() const;
  /// Those of the given buckets, a run for each parameter group and dtype at least.
  std::vector<SpanRun> runs_of(std::vector<int64_t> buckets) const;

  /// Bounds of every run: spans, and elements of the state that they lie in.
  int64_t most_spans() const { return most_spans_; }
  int64_t most_numel() const { return most_numel_; }

 private:
  /// Spans of one bucket with gradients of one dtype.
  struct Part {
    c10::ScalarType grad_dtype;
    int64_t bucket, first_span, span_count;
  };
  bool direct() const;
  void collect();
  void add(const GradientSpan& span, size_t bucket);
  SpanRun run_of(const Part& first, const Part& last) const;

  const ShardParts parts_;
  DeviceExecutor& executor_;
  const std::vector<int64_t> state_begins_;  ///< by bucket
  std::vector<std::byte*> y_;                ///< by bucket: this rank's slice of the parameters
  int64_t most_spans_ = 0, most_numel_ = 0;
  int64_t scalar_bytes_ = 0;
  at::Tensor table_;
  std::vector<Part> table_parts_;  ///< in the order of the spans
  std::vector<size_t>
      parts_of_bucket_;  ///< by bucket: the first of its parts, and behind the last one how many there are
  std::vector<kernels::cuda::SpanOnDevice> spans_;
  bool is_uploaded_ = false;
  PinnedBuffers uploads_;
};

}  // namespace zerosched::detail
