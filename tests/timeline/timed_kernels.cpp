#include "timeline/timed_kernels.h"

#include "kernels/cuda/pack_table.h"

#include <c10/core/ScalarType.h>

namespace zerosched::testing {

namespace cuda = kernels::cuda;

namespace {

constexpr double kStateElement = 4;  // float32

double size_of(c10::ScalarType dtype) { return static_cast<double>(c10::elementSize(dtype)); }

}  // namespace

// Launches that follow each other wait for nothing, but each has its own shortest time.
void TimedKernels::launch(cuda::Stream stream, double bytes, Phase phase, const char* name, int launches) {
  const MachineModel& model = runtime_.model();
  runtime_.queue({0, stream}, model.kernel(bytes) + (launches - 1) * model.kernel_start,
      launches * model.launch_call, phase, name);
}

void TimedKernels::update(kernels::Rule, const kernels::StepScalars&, c10::ScalarType param_dtype,
    c10::ScalarType grad_dtype, const cuda::ShardUpdate& shard, cuda::Stream stream) {
  double element = size_of(param_dtype) + size_of(grad_dtype);
  for (const void* state : shard.state) element += state == nullptr ? 0 : 2 * kStateElement;
  launch(stream, element * static_cast<double>(shard.range_numel), Phase::update, "update");
}

void TimedKernels::interpolate(c10::ScalarType param_dtype, void*, const void*, const void*, double,
    int64_t numel, cuda::Stream stream) {
  launch(stream, (2 * kStateElement + size_of(param_dtype)) * static_cast<double>(numel), Phase::other,
      "interpolate");
}

int64_t TimedKernels::sum_of_squares_workspace_numel(int64_t, int64_t span_count) { return span_count; }

void TimedKernels::sum_of_squares(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t range_numel, double* workspace, double* sum, cuda::Stream stream) {
  sum_of_powers(grad_dtype, 2, spans, span_count, range_numel, workspace, sum, stream);
}

void TimedKernels::sum_of_powers(c10::ScalarType grad_dtype, double, const cuda::SpanOnDevice*, int64_t,
    int64_t range_numel, double*, double*, cuda::Stream stream) {
  launch(stream, size_of(grad_dtype) * static_cast<double>(range_numel), Phase::update, "norm", 2);
}

void TimedKernels::squares_by_parameter(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t range_numel, double* workspace, double* squares, cuda::Stream stream) {
  sum_of_powers(grad_dtype, 2, spans, span_count, range_numel, workspace, squares, stream);
}

void TimedKernels::max_abs(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double* workspace, double* largest, cuda::Stream stream) {
  sum_of_powers(grad_dtype, 1, spans, span_count, range_numel, workspace, largest, stream);
}

void TimedKernels::clamp_gradient(c10::ScalarType grad_dtype, const cuda::SpanOnDevice*, int64_t,
    int64_t range_numel, double, cuda::Stream stream) {
  launch(stream, 2 * size_of(grad_dtype) * static_cast<double>(range_numel), Phase::update, "clamp");
}

void TimedKernels::pack(c10::ScalarType dtype, const cuda::PackBucket& bucket,
    const cuda::PackSource* sources, int64_t source_count, cuda::Stream stream) {
  double bytes = size_of(dtype) * static_cast<double>(bucket.world_size * bucket.slice_numel);
  for (int64_t s = 0; s < source_count; ++s) {
    if (sources[s].gradient != nullptr)
      bytes += size_of(sources[s].dtype) * static_cast<double>(sources[s].numel);
  }
  launch(stream, bytes, Phase::pack, "pack",
      static_cast<int>((source_count + cuda::kManySlots - 1) / cuda::kManySlots));
}

void TimedKernels::gradient_norm(const double*, const kernels::StepScalars*, std::optional<double>, bool,
    c10::ScalarType, cuda::GradientNorm*, cuda::Stream stream) {
  launch(stream, 0, Phase::update, "gradient norm");
}

}  // namespace zerosched::testing
