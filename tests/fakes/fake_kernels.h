#pragma once

#include "engine/device_kernels.h"
#include "fakes/fake_runtime.h"

#include <functional>
#include <map>
#include <string>

namespace zerosched::testing {

/// The kernels of a fake device: those of the CPU, run when the stream gets to them. What a GPU would read
/// from its memory is read then.
class FakeKernels final : public detail::DeviceKernels {
 public:
  explicit FakeKernels(FakeRuntime& runtime) : runtime_(runtime) {}

  /// Calls of each function by its name, each of them one launch, or on a GPU two of a sum.
  std::map<std::string, int64_t> calls;

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
  void inner_product(c10::ScalarType grad_dtype, double weight, const void* z, const void* x,
      const kernels::cuda::SpanOnDevice* spans, int64_t span_count, int64_t range_numel, double* workspace,
      double* sum, kernels::cuda::Stream stream) override;
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
  void enqueue(const char* name, kernels::cuda::Stream stream, std::function<void()> work);

  FakeRuntime& runtime_;
};

}  // namespace zerosched::testing
