#pragma once

#include "engine/device_kernels.h"
#include "timeline/timed_runtime.h"

namespace zerosched::testing {

/// The time of the kernels: that of the bytes that they read and write.
class TimedKernels final : public detail::DeviceKernels {
 public:
  explicit TimedKernels(TimedRuntime& runtime) : runtime_(runtime) {}

  void update(kernels::Rule rule, const kernels::StepScalars& scalars, c10::ScalarType param_dtype,
      c10::ScalarType grad_dtype, const kernels::cuda::ShardUpdate& shard,
      kernels::cuda::Stream stream) override;
  void interpolate(c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight,
      int64_t numel, kernels::cuda::Stream stream) override;
  int64_t sum_of_squares_workspace_numel(int64_t range_numel, int64_t span_count) override;
  void sum_of_squares(c10::ScalarType grad_dtype, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double* workspace, double* sum,
      kernels::cuda::Stream stream) override;
  void sum_of_powers(c10::ScalarType grad_dtype, double p, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double* workspace, double* sum,
      kernels::cuda::Stream stream) override;
  void squares_by_parameter(c10::ScalarType grad_dtype, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double* workspace, double* squares,
      kernels::cuda::Stream stream) override;
  void max_abs(c10::ScalarType grad_dtype, const kernels::cuda::SpanOnDevice* spans, int64_t span_count,
      int64_t range_numel, double* workspace, double* largest, kernels::cuda::Stream stream) override;
  void clamp_gradient(c10::ScalarType grad_dtype, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double limit, kernels::cuda::Stream stream) override;
  void pack(c10::ScalarType dtype, const kernels::cuda::PackBucket& bucket,
      const kernels::cuda::PackSource* sources, int64_t source_count, kernels::cuda::Stream stream) override;
  void gradient_norm(const double* sum, const kernels::StepScalars* scalars, std::optional<double> max_norm,
      bool skip_non_finite, c10::ScalarType state_dtype, kernels::cuda::GradientNorm* out,
      kernels::cuda::Stream stream) override;

 private:
  void launch(kernels::cuda::Stream stream, double bytes, Phase phase, const char* name, int launches = 1);

  TimedRuntime& runtime_;
};

}  // namespace zerosched::testing
