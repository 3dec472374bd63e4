#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/tiles.cuh"
#include "kernels/element_types.h"
#include "kernels/summation.h"

#include <cstdint>
#include <type_traits>

// Sums of powers in the order of summation.h, in two kernels: one block a tile, then one block for all
// tiles. A thread adds up as many columns of a group as one 16-byte access holds. The sum is in double, so one
// of squares is finite if and only if every element of a type narrower than that is: this is the check for inf
// and NaN as well.
namespace zerosched::kernels::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffU;
inline constexpr int kAddTilesThreads = 1024;
inline constexpr int kSumTileLog2 = log2_of(kSumTileNumel);
static_assert(kSumTileNumel == int64_t{1} << kSumTileLog2, "tiles are found by shifts");

/// Lane 0 of each run of kLanes lanes gets the pairwise sum of theirs.
template <int kLanes, typename Power>
__device__ __forceinline__ double add_lanes(double sum) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2)
    sum = Power::add(sum, __shfl_down_sync(kWholeWarp, sum, half, kLanes));
  return sum;
}

template <typename Grad>
struct SumShape {
  static constexpr int kCount = 16 / sizeof(Grad);  ///< columns of a thread
  static constexpr int kLanes =
      static_cast<int>(kSumColumns) / kCount;  ///< threads of a group, part of one warp
  static constexpr int kThreads = kLanes * static_cast<int>(kSumGroups);
};

/// A row of the thread's columns; zeros past the end.
template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> load_bounded(const T* from, int64_t left) {
  Pack<T, kCount> pack = {};
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (j < left) pack.values[j] = from[j];
  }
  return pack;
}

template <typename Grad, typename Power>
__device__ __forceinline__ void add_row(
    const Power& power, double* columns, const Pack<Grad, SumShape<Grad>::kCount>& pack) {
#pragma unroll
  for (int j = 0; j < SumShape<Grad>::kCount; ++j) {
    columns[j] = power.with(columns[j], static_cast<double>(load(pack.values[j])));
  }
}

/// Pairwise over the columns of a tile, and then over its groups. Thread 0 gets the sum, others 0.
template <typename Grad, typename Power>
__device__ __forceinline__ double add_columns(double* columns, double (&group_sums)[kSumGroups]) {
  using Shape = SumShape<Grad>;
  const int group = threadIdx.x / Shape::kLanes;
  const int lane = threadIdx.x % Shape::kLanes;
  // Of other threads first, then the thread's own.
#pragma unroll
  for (int half = Shape::kLanes / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < Shape::kCount; ++j) {
      columns[j] = Power::add(columns[j], __shfl_down_sync(kWholeWarp, columns[j], half, Shape::kLanes));
    }
  }
  if (lane == 0) group_sums[group] = add_pairwise<Shape::kCount, Power>(columns);
  __syncthreads();
  if (threadIdx.x < kSumGroups) {
    const double sum = add_lanes<kSumGroups, Power>(group_sums[threadIdx.x]);
    if (threadIdx.x == 0) return sum;
  }
  return 0;
}

/// tile_sums[tile]: 0 for tiles that no span needs or whose parameter nobody used. One block a tile.
template <typename Grad, typename Power>
__global__ void __launch_bounds__(SumShape<Grad>::kThreads)
    sum_tiles_kernel(const Power power, const SpanOnDevice* table, int64_t span_count, double* tile_sums) {
  using Shape = SumShape<Grad>;
  __shared__ double group_sums[kSumGroups];
  const int group = threadIdx.x / Shape::kLanes;
  const int lane = threadIdx.x % Shape::kLanes;
  const TiledSpans spans(table, span_count, kSumTileLog2);
  const Tile tile = spans.tile(blockIdx.x);
  double columns[Shape::kCount] = {};
  if (tile.numel != 0 && is_used<Grad>(spans[tile.span])) {
    const Grad* gradient = in_global_memory<Grad>(spans[tile.span].values) + tile.begin;
    const int64_t first = group * kSumGroupNumel + lane * Shape::kCount;
    if (tile.numel == kSumTileNumel && is_pack_aligned(gradient)) {
#pragma unroll 4
      for (int64_t row = 0; row < kSumRows; ++row) {
        add_row(power, columns, load_pack<Shape::kCount>(gradient + first + row * kSumColumns));
      }
    } else {
#pragma unroll 1
      for (int64_t row = 0; row < kSumRows; ++row) {
        const int64_t i = first + row * kSumColumns;
        add_row(power, columns, load_bounded<Shape::kCount>(gradient + i, tile.numel - i));
      }
    }
  }
  const double sum = add_columns<Grad, Power>(columns, group_sums);
  if (threadIdx.x == 0) tile_sums[blockIdx.x] = sum;
}

/// span_sums[i]: the sum of span `base` + i, for all i below `count`, which is at most the block's threads.
template <typename Power>
__device__ __forceinline__ void add_tiles_of_spans(
    const TiledSpans& spans, int64_t base, int count, const double* tile_sums, double* span_sums) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % static_cast<int>(kSumLanes);
  const int warp = thread / static_cast<int>(kSumLanes);
  // Most spans of a long table are small: one tile, of which nothing has to be added.
  if (thread < count) {
    const int64_t span = base + thread;
    span_sums[thread] = spans[span].numel > 0 ? tile_sums[spans.first_tile(span)] : 0;
  }
  __syncthreads();
  for (int i = warp; i < count; i += kAddTilesThreads / kSumLanes) {
    const int64_t span = base + i;
    if (spans[span].numel <= kSumTileNumel) continue;
    const int64_t tiles = (spans[span].numel + kSumTileNumel - 1) / kSumTileNumel;
    const double* sums = tile_sums + spans.first_tile(span);
    double lane_sum = 0;
    for (int64_t tile = lane; tile < tiles; tile += kSumLanes) lane_sum = Power::add(lane_sum, sums[tile]);
    lane_sum = add_lanes<kSumLanes, Power>(lane_sum);
    if (lane == 0) span_sums[i] = lane_sum;
  }
  __syncthreads();
}

__device__ __forceinline__ int spans_of_block(int64_t base, int64_t span_count) {
  return static_cast<int>(span_count - base < kAddTilesThreads ? span_count - base : kAddTilesThreads);
}

/// Adds each span's sum to *sum, in their order. One block.
template <typename Power>
__global__ void __launch_bounds__(kAddTilesThreads)
    add_tiles_kernel(const SpanOnDevice* table, int64_t span_count, const double* tile_sums, double* sum) {
  __shared__ double span_sums[kAddTilesThreads];
  const TiledSpans spans(table, span_count, kSumTileLog2);
  for (int64_t base = 0; base < span_count; base += kAddTilesThreads) {
    const int count = spans_of_block(base, span_count);
    add_tiles_of_spans<Power>(spans, base, count, tile_sums, span_sums);
    if (threadIdx.x == 0) {
      double total = *sum;
      for (int i = 0; i < count; ++i) total = Power::add(total, span_sums[i]);
      *sum = total;
    }
    __syncthreads();
  }
}

/// Adds each span's sum to that of its parameter, which no two spans share. A span a thread.
template <typename Power>
__global__ void __launch_bounds__(kAddTilesThreads) add_tiles_by_parameter_kernel(
    const SpanOnDevice* table, int64_t span_count, const double* tile_sums, double* sums) {
  __shared__ double span_sums[kAddTilesThreads];
  const TiledSpans spans(table, span_count, kSumTileLog2);
  const int64_t base = static_cast<int64_t>(blockIdx.x) * kAddTilesThreads;
  const int count = spans_of_block(base, span_count);
  add_tiles_of_spans<Power>(spans, base, count, tile_sums, span_sums);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= count) return;
  double& sum = sums[spans[base + thread].parameter];
  sum = Power::add(sum, span_sums[thread]);
}

template <typename Grad>
void launch_sum_of_powers(double p, const SpanOnDevice* spans, int64_t span_count, int64_t range_numel,
    double* workspace, double* sum, Stream stream) {
  const int64_t tiles = tile_count(range_numel, span_count, kSumTileNumel);
  with_power(p, [&](const auto& power) {
    using Power = std::decay_t<decltype(power)>;
    ZEROSCHED_LAUNCH((sum_tiles_kernel<Grad, Power>), tiles, SumShape<Grad>::kThreads, stream, power, spans,
        span_count, workspace);
    ZEROSCHED_LAUNCH(add_tiles_kernel<Power>, 1, kAddTilesThreads, stream, spans, span_count, workspace, sum);
  });
}

template <typename Grad>
void launch_squares_by_parameter(const SpanOnDevice* spans, int64_t span_count, int64_t range_numel,
    double* workspace, double* squares, Stream stream) {
  const int64_t tiles = tile_count(range_numel, span_count, kSumTileNumel);
  ZEROSCHED_LAUNCH((sum_tiles_kernel<Grad, Squares>), tiles, SumShape<Grad>::kThreads, stream, Squares(),
      spans, span_count, workspace);
  ZEROSCHED_LAUNCH(add_tiles_by_parameter_kernel<Squares>, (span_count - 1) / kAddTilesThreads + 1,
      kAddTilesThreads, stream, spans, span_count, workspace, squares);
}

}  // namespace zerosched::kernels::cuda
