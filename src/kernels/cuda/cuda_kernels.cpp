#include "kernels/cuda/cuda_kernels.h"

#include "base/check.h"
#include "kernels/element_types.h"
#include "kernels/gradient_dtypes.h"
#include "kernels/kernels.h"
#include "kernels/summation.h"

#include <cuda_runtime_api.h>

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

namespace zerosched::kernels::cuda {
namespace {

using c10::ScalarType;

void check(cudaError_t error, const char* what) {
  ZEROSCHED_CHECK(error == cudaSuccess, "CUDA: ", what, " failed: ", cudaGetErrorString(error), " (",
      cudaGetErrorName(error),
      "). The cause may be an earlier kernel: run with CUDA_LAUNCH_BLOCKING=1 to see which.");
}

int64_t multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

void check_aligned(const void* pointer, const char* what) {
  ZEROSCHED_CHECK(reinterpret_cast<uintptr_t>(pointer) % 16 == 0, "a CUDA kernel's ", what, " is at ",
      pointer, ", but must be aligned to 16 bytes.");
}

/// Calls function(Param()) with the type of elements of a dtype.
template <typename Function>
void with_element_type(ScalarType dtype, const Function& function) {
  switch (dtype) {
    // NOLINTNEXTLINE(bugprone-branch-clone): the calls differ in the type
    case ScalarType::Float:
      return function(float());
    case ScalarType::Double:
      return function(double());
    case ScalarType::BFloat16:
      return function(BFloat16());
    case ScalarType::Half:
      return function(Float16());
    default:
      ZEROSCHED_CHECK(false, "no CUDA kernel for ", c10::toString(dtype), ".");
  }
}

ElementType element_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return ElementType::float64;
    case ScalarType::BFloat16:
      return ElementType::bfloat16;
    case ScalarType::Half:
      return ElementType::float16;
    default:
      return ElementType::float32;
  }
}

std::vector<PackSlot> pack_slots(ScalarType dtype, const PackSource* sources, int64_t count) {
  std::vector<PackSlot> slots;
  slots.reserve(static_cast<size_t>(count));
  int64_t end = 0;
  for (const PackSource* source = sources; source != sources + count; ++source) {
    ZEROSCHED_CHECK(converts_gradient(source->dtype, dtype), "no kernel packs ", c10::toString(source->dtype),
        " gradients into a ", c10::toString(dtype), " bucket.");
    ZEROSCHED_CHECK(source->begin >= end && source->numel > 0, "slot ", source - sources,
        " of a bucket to pack is [", source->begin, ", ", source->begin + source->numel,
        "), but slots are ascending, and the one before ends at ", end, ".");
    end = source->begin + source->numel;
    slots.push_back({source->gradient, source->begin, source->numel, element_type(source->dtype)});
  }
  return slots;
}

void add_powers(double p, ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double* workspace, double* sum, Stream stream) {
  if (span_count == 0) return;
  with_element_type(grad_dtype, [&](auto grad) {
    launch_sum_of_powers<decltype(grad)>(p, spans, span_count, range_numel, workspace, sum, stream);
  });
  check(cudaGetLastError(), "the launch of a sum");
}

}  // namespace

void update(Rule rule, const StepScalars& scalars, ScalarType param_dtype, ScalarType grad_dtype,
    const ShardUpdate& shard, Stream stream) {
  ZEROSCHED_CHECK(is_supported(param_dtype) && can_update(param_dtype, grad_dtype), "no update kernel for ",
      c10::toString(param_dtype), " parameters with ", c10::toString(grad_dtype), " gradients.");
  if (shard.span_count == 0) return;
  for (const void* state : shard.state) check_aligned(state, "state");
  with_element_type(param_dtype, [&](auto param) {
    using Param = decltype(param);
    if (grad_dtype == param_dtype) {
      launch_update<Param, Param>(rule, scalars, shard, multiprocessors(), stream);
    } else if constexpr (std::is_same_v<Param, float>) {
      launch_update<float, BFloat16>(rule, scalars, shard, multiprocessors(), stream);
    } else {
      launch_update<Param, typename StateOf<Param>::type>(rule, scalars, shard, multiprocessors(), stream);
    }
  });
  check(cudaGetLastError(), "the launch of an update");
}

void interpolate(ScalarType param_dtype, void* out, const void* x, const void* z, double weight,
    int64_t numel, Stream stream) {
  if (numel == 0) return;
  check_aligned(out, "out");
  check_aligned(x, "x");
  check_aligned(z, "z");
  with_element_type(param_dtype, [&](auto param) {
    launch_interpolate<decltype(param)>(out, x, z, weight, numel, multiprocessors(), stream);
  });
  check(cudaGetLastError(), "the launch of an interpolation");
}

int64_t sum_of_squares_workspace_numel(int64_t range_numel, int64_t span_count) {
  return tile_count(range_numel, span_count, kSumTileNumel);
}

void sum_of_squares(ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count, int64_t range_numel,
    double* workspace, double* sum, Stream stream) {
  add_powers(2, grad_dtype, spans, span_count, range_numel, workspace, sum, stream);
}

void sum_of_powers(ScalarType grad_dtype, double p, const SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double* workspace, double* sum, Stream stream) {
  ZEROSCHED_CHECK(p > 0 && std::isfinite(p), "the power of a norm is finite and above 0, not ", p, ".");
  add_powers(p, grad_dtype, spans, span_count, range_numel, workspace, sum, stream);
}

void inner_product(ScalarType grad_dtype, double weight, const void* z, const void* x,
    const SpanOnDevice* spans, int64_t span_count, int64_t range_numel, double* workspace, double* sum,
    Stream stream) {
  if (span_count == 0) return;
  check_aligned(z, "z");
  check_aligned(x, "x");
  with_element_type(grad_dtype, [&](auto grad) {
    launch_inner_product<decltype(grad)>(
        weight, z, x, spans, span_count, range_numel, workspace, sum, stream);
  });
  check(cudaGetLastError(), "the launch of an inner product");
}

void squares_by_parameter(ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double* workspace, double* squares, Stream stream) {
  if (span_count == 0) return;
  with_element_type(grad_dtype, [&](auto grad) {
    launch_squares_by_parameter<decltype(grad)>(spans, span_count, range_numel, workspace, squares, stream);
  });
  check(cudaGetLastError(), "the launch of sums by parameter");
}

void max_abs(ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count, int64_t range_numel,
    double* workspace, double* largest, Stream stream) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  add_powers(kInfinity, grad_dtype, spans, span_count, range_numel, workspace, largest, stream);
}

void clamp_gradient(ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count, int64_t range_numel,
    double limit, Stream stream) {
  ZEROSCHED_CHECK(limit >= 0, "gradients are clamped to a limit of at least 0, not ", limit, ".");
  if (span_count == 0) return;
  with_element_type(grad_dtype, [&](auto grad) {
    launch_clamp_gradient<decltype(grad)>(spans, span_count, range_numel, limit, multiprocessors(), stream);
  });
  check(cudaGetLastError(), "the launch of a clamp");
}

void pack(ScalarType dtype, const PackBucket& bucket, const PackSource* sources, int64_t source_count,
    Stream stream) {
  check_aligned(bucket.buffer, "bucket");
  ZEROSCHED_CHECK(bucket.slice_numel * static_cast<int64_t>(c10::elementSize(dtype)) % 16 == 0,
      "the slices of a bucket have ", bucket.slice_numel, " elements of ", c10::toString(dtype),
      ", but must be aligned to 16 bytes.");
  const std::vector<PackSlot> slots = pack_slots(dtype, sources, source_count);
  with_element_type(dtype, [&](auto element) {
    launch_pack<decltype(element)>(bucket, slots.data(), source_count, multiprocessors(), stream);
  });
  check(cudaGetLastError(), "the launch of a pack");
}

void gradient_norm(const double* sum, const StepScalars* scalars, std::optional<double> max_norm,
    bool skip_non_finite, ScalarType state_dtype, GradientNorm* out, Stream stream) {
  launch_gradient_norm(
      sum, scalars, max_norm.value_or(-1), skip_non_finite, state_dtype == ScalarType::Double, out, stream);
  check(cudaGetLastError(), "the launch of a gradient norm");
}

}  // namespace zerosched::kernels::cuda
