#pragma once

#include "kernels/cuda/gradient_norm.h"
#include "kernels/cuda/pack_table.h"
#include "kernels/cuda/span_on_device.h"
#include "kernels/step_scalars.h"

#include <cstdint>

struct CUstream_st;  // cudaStream_t points to one

// One launch a function, with the types of elements as template arguments. Defined in .cuh files and
// instantiated in .cu files, a few each; cuda_kernels.cpp chooses among them. Callers look at
// cudaGetLastError.
namespace zerosched::kernels::cuda {

using Stream = CUstream_st*;

/// What one launch updates: any number of buckets of one parameter group and dtype. All pointers are to device memory.
struct ShardUpdate {
  /// Flat, of all buckets of its dtype, in the rule's order; aligned to 16 bytes. The others are null.
  void* state[kMaxStateTensors];
  int64_t range_numel;  ///< from the first span's begin to the last one's end
  const SpanOnDevice* spans;
  int64_t span_count;
  const StepScalars* scalars;
  const GradientNorm* norm;  ///< null: no clipping, and inf and NaN are used like any gradient
  /// Set to 1 if an element that was written is not finite in the first or the last state tensor; else left as
  /// it is. null: not looked at.
  int32_t* not_finite = nullptr;
};

template <typename Param, typename Grad>
void launch_update(
    Rule rule, const StepScalars& scalars, const ShardUpdate& u, int64_t multiprocessors, Stream stream);

template <typename Param>
void launch_interpolate(void* out, const void* x, const void* z, double weight, int64_t numel,
    int64_t multiprocessors, Stream stream);

/// p as of with_power.
template <typename Grad>
void launch_sum_of_powers(double p, const SpanOnDevice* spans, int64_t span_count, int64_t range_numel,
    double* workspace, double* sum, Stream stream);

/// z, x: in the state's dtype, flat, as spans count.
template <typename Grad>
void launch_inner_product(double weight, const void* z, const void* x, const SpanOnDevice* spans,
    int64_t span_count, int64_t range_numel, double* workspace, double* sum, Stream stream);

template <typename Grad>
void launch_squares_by_parameter(const SpanOnDevice* spans, int64_t span_count, int64_t range_numel,
    double* workspace, double* squares, Stream stream);

template <typename Grad>
void launch_clamp_gradient(const SpanOnDevice* spans, int64_t span_count, int64_t range_numel, double limit,
    int64_t multiprocessors, Stream stream);

/// As pack(), in as many launches as the slots need.
template <typename To>
void launch_pack(
    const PackBucket& bucket, const PackSlot* slots, int64_t count, int64_t multiprocessors, Stream stream);

/// max_norm < 0: no clipping.
void launch_gradient_norm(const double* sum, const StepScalars* scalars, double max_norm,
    bool skip_non_finite, bool float64_state, GradientNorm* out, Stream stream);

}  // namespace zerosched::kernels::cuda
