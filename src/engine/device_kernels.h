#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace zerosched::detail {

/// The kernels of a GPU, as kernels/cuda/cuda_kernels.h describes them, for tests to put others in their
/// place.
class DeviceKernels {
 public:
  virtual ~DeviceKernels();
  /// Those of the library. Live for ever.
  static DeviceKernels& library();

  virtual void update(kernels::Rule rule, const kernels::StepScalars& scalars, c10::ScalarType param_dtype,
      c10::ScalarType grad_dtype, const kernels::cuda::ShardUpdate& shard, kernels::cuda::Stream stream);
  virtual void interpolate(c10::ScalarType param_dtype, void* out, const void* x, const void* z,
      double weight, int64_t numel, kernels::cuda::Stream stream);
  virtual int64_t sum_of_squares_workspace_numel(int64_t range_numel, int64_t span_count);
  virtual void sum_of_squares(c10::ScalarType grad_dtype, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double* workspace, double* sum, kernels::cuda::Stream stream);
  virtual void sum_of_powers(c10::ScalarType grad_dtype, double p, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double* workspace, double* sum, kernels::cuda::Stream stream);
  virtual void inner_product(c10::ScalarType grad_dtype, double weight, const void* z, const void* x,
      const kernels::cuda::SpanOnDevice* spans, int64_t span_count, int64_t range_numel, double* workspace,
      double* sum, kernels::cuda::Stream stream);
  virtual void squares_by_parameter(c10::ScalarType grad_dtype, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double* workspace, double* squares,
      kernels::cuda::Stream stream);
  virtual void max_abs(c10::ScalarType grad_dtype, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double* workspace, double* largest,
      kernels::cuda::Stream stream);
  virtual void clamp_gradient(c10::ScalarType grad_dtype, const kernels::cuda::SpanOnDevice* spans,
      int64_t span_count, int64_t range_numel, double limit, kernels::cuda::Stream stream);
  virtual void pack(c10::ScalarType dtype, const kernels::cuda::PackBucket& bucket,
      const kernels::cuda::PackSource* sources, int64_t source_count, kernels::cuda::Stream stream);
  virtual void gradient_norm(const double* sum, const kernels::StepScalars* scalars,
      std::optional<double> max_norm, bool skip_non_finite, c10::ScalarType state_dtype,
      kernels::cuda::GradientNorm* out, kernels::cuda::Stream stream);
};

}  // namespace zerosched::detail
