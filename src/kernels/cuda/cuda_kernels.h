#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>

// The kernels on an NVIDIA GPU: the arithmetic of kernels.h on any number of shards at a time, with the same bits.
//
// Each function launches on `stream`, whose device must be the current one, and returns; none waits for the
// device or allocates memory on it. All pointers but that to the rule's scalars are to device memory. All can be captured
// in a CUDA graph, which keeps the arguments of the call: pointers, counts, dtypes, the variant of a rule,
// `weight`, `p`, `limit`, `max_norm`, all that pack() is told. What the pointers point at is read at every replay:
// spans, flags, scalars, norm.
//
// All throw where zerosched was built without CUDA, and c10::Error if a launch fails.
namespace zerosched::kernels::cuda {

/// One step of `rule` on the elements of all spans, and of no others. Gradients are multiplied with
/// norm->clip_factor; nothing changes if norm->found_inf is set, *not_finite included.
/// `scalars` is the host's copy of *shard.scalars. It chooses the variant of the rule (adaptive, nesterov,
/// weight decay or none), and nothing else is read from it.
void update(Rule rule, const StepScalars& scalars, c10::ScalarType param_dtype, c10::ScalarType grad_dtype,
    const ShardUpdate& shard, Stream stream);

/// out = lerp(x, z, weight), rounded to param_dtype, as kernels::interpolate. Aligned to 16 bytes, all three.
void interpolate(c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight,
    int64_t numel, Stream stream);

/// Elements that sum_of_squares and the four after it need as their workspace. range_numel, here and below: elements
/// from the first span's begin to the last one's end, or more.
int64_t sum_of_squares_workspace_numel(int64_t range_numel, int64_t span_count);

/// *sum = (*sum + s0) + s1 + ..., s of each span's used values as kernels::sum_of_squares gives it. Not
/// finite if an element is not; for float64 also where squares overflow.
void sum_of_squares(c10::ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double* workspace, double* sum, Stream stream);

/// The same of |g|^p, 0 < p < infinity: the bits of kernels::sum_of_powers for p = 1 and p = 2.
void sum_of_powers(c10::ScalarType grad_dtype, double p, const SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double* workspace, double* sum, Stream stream);

/// *sum = (*sum + s0) + s1 + ..., s of each used span: `weight` times <g, z - x> as kernels::inner_product gives it. z, x:
/// flat, as spans count, of the dtype of the state of grad_dtype parameters; aligned to 16 bytes.
void inner_product(c10::ScalarType grad_dtype, double weight, const void* z, const void* x,
    const SpanOnDevice* spans, int64_t span_count, int64_t range_numel, double* workspace, double* sum,
    Stream stream);

/// squares[span.parameter] += s of each span: as many sums in two launches. No two spans are of one parameter.
void squares_by_parameter(c10::ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double* workspace, double* squares, Stream stream);

/// *largest = the largest of *largest and each used |g|; NaN if one is. *largest is not negative before.
void max_abs(c10::ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count, int64_t range_numel,
    double* workspace, double* largest, Stream stream);

/// Clamps the used spans' values in place, as kernels::clamp_gradient.
void clamp_gradient(c10::ScalarType grad_dtype, const SpanOnDevice* spans, int64_t span_count,
    int64_t range_numel, double limit, Stream stream);

/// Writes the whole of a bucket's buffer: each slice's gradients, 0 where a slot has none and between slots, then flags,
/// 1 for a slot that overlaps the slice (Piece::flag) and has a gradient, else 0, then the report. `sources` are all
/// slots of the bucket, ascending, in host memory, and the caller's again on return. Takes one launch for each
/// kManySlots of them (pack_table.h).
void pack(c10::ScalarType dtype, const PackBucket& bucket, const PackSource* sources, int64_t source_count,
    Stream stream);

/// From the sum of squares of the summed gradient, over all shards: the norm of the averaged one, scaled by
/// scalars->grad_scale, and what clipping it to max_norm takes. With `skip_non_finite`, found_inf is set where
/// the norm or grad_scale is not finite in `state_dtype` (can_be_used in clipping.h), the narrowest of all
/// states.
void gradient_norm(const double* sum, const StepScalars* scalars, std::optional<double> max_norm,
    bool skip_non_finite, c10::ScalarType state_dtype, GradientNorm* out, Stream stream);

}  // namespace zerosched::kernels::cuda
