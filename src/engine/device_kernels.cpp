#include "engine/device_kernels.h"

namespace zerosched::detail {

namespace cuda = kernels::cuda;

DeviceKernels::~DeviceKernels() = default;

DeviceKernels& DeviceKernels::library() {
  static auto* kernels = new DeviceKernels;
  return *kernels;
}

void DeviceKernels::update(kernels::Rule rule, const kernels::StepScalars& scalars,
    c10::ScalarType param_dtype, c10::ScalarType grad_dtype, const cuda::ShardUpdate& shard,
    cuda::Stream stream) {
  cuda::update(rule, scalars, param_dtype, grad_dtype, shard, stream);
}

void DeviceKernels::interpolate(c10::ScalarType param_dtype, void* out, const void* x, const void* z,
    double weight, int64_t numel, cuda::Stream stream) {
  cuda::interpolate(param_dtype, out, x, z, weight, numel, stream);
}

int64_t DeviceKernels::sum_of_squares_workspace_numel(int64_t range_numel, int64_t span_count) {
  return cuda::sum_of_squares_workspace_numel(range_numel, span_count);
}

void DeviceKernels::sum_of_squares(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t range_numel, double* workspace, double* sum, cuda::Stream stream) {
  cuda::sum_of_squares(grad_dtype, spans, span_count, range_numel, workspace, sum, stream);
}

void DeviceKernels::sum_of_powers(c10::ScalarType grad_dtype, double p, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t range_numel, double* workspace, double* sum, cuda::Stream stream) {
  cuda::sum_of_powers(grad_dtype, p, spans, span_count, range_numel, workspace, sum, stream);
}

void DeviceKernels::inner_product(c10::ScalarType grad_dtype, double weight, const void* z, const void* x,
    const cuda::SpanOnDevice* spans, int64_t span_count, int64_t range_numel, double* workspace, double* sum,
    cuda::Stream stream) {
  cuda::inner_product(grad_dtype, weight, z, x, spans, span_count, range_numel, workspace, sum, stream);
}

void DeviceKernels::squares_by_parameter(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t range_numel, double* workspace, double* squares, cuda::Stream stream) {
  cuda::squares_by_parameter(grad_dtype, spans, span_count, range_numel, workspace, squares, stream);
}

void DeviceKernels::max_abs(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double* workspace, double* largest, cuda::Stream stream) {
  cuda::max_abs(grad_dtype, spans, span_count, range_numel, workspace, largest, stream);
}

void DeviceKernels::clamp_gradient(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t range_numel, double limit, cuda::Stream stream) {
  cuda::clamp_gradient(grad_dtype, spans, span_count, range_numel, limit, stream);
}

void DeviceKernels::pack(c10::ScalarType dtype, const cuda::PackBucket& bucket,
    const cuda::PackSource* sources, int64_t source_count, cuda::Stream stream) {
  cuda::pack(dtype, bucket, sources, source_count, stream);
}

void DeviceKernels::gradient_norm(const double* sum, const kernels::StepScalars* scalars,
    std::optional<double> max_norm, bool skip_non_finite, c10::ScalarType state_dtype,
    cuda::GradientNorm* out, cuda::Stream stream) {
  cuda::gradient_norm(sum, scalars, max_norm, skip_non_finite, state_dtype, out, stream);
}

}  // namespace zerosched::detail
