#pragma once

#include "kernels/cuda/sum_of_powers.cuh"
#include "kernels/inner_product.h"

#include <cstdint>

// <g, z - x> in the order of summation.h, in the two kernels of a sum of powers.
namespace zerosched::kernels::cuda {

template <typename Grad, typename Real, int kCount>
__device__ __forceinline__ void add_row_of_products(
    double* columns, const Pack<Grad, kCount>& g, const Pack<Real, kCount>& z, const Pack<Real, kCount>& x) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    columns[j] = with_product(columns[j], static_cast<double>(load(g.values[j])),
        static_cast<double>(z.values[j]), static_cast<double>(x.values[j]));
  }
}

/// tile_sums[tile]: of the tile, times `weight`; 0 for tiles that no span needs or whose parameter nobody used. z, x:
/// flat, as spans count. One block a tile.
template <typename Grad, typename Real>
__global__ void __launch_bounds__(SumShape<Grad>::kThreads)
    inner_product_of_tiles_kernel(double weight, const Real* z_values, const Real* x_values,
        const SpanOnDevice* table, int64_t span_count, double* tile_sums) {
  constexpr int kCount = SumShape<Grad>::kCount;
  __shared__ double group_sums[kSumGroups];
  const TiledSpans spans(table, span_count, kSumTileLog2);
  const Tile tile = spans.tile(blockIdx.x);
  double columns[kCount] = {};
  if (tile.numel != 0 && is_used<Grad>(spans[tile.span])) {
    const Grad* gradient = in_global_memory<Grad>(spans[tile.span].values) + tile.begin;
    const Real* z = z_values + spans[tile.span].begin + tile.begin;
    const Real* x = x_values + spans[tile.span].begin + tile.begin;
    const int64_t first =
        threadIdx.x / SumShape<Grad>::kLanes * kSumGroupNumel + threadIdx.x % SumShape<Grad>::kLanes * kCount;
    if (tile.numel == kSumTileNumel && is_pack_aligned(gradient)) {
#pragma unroll 1
      for (int64_t row = 0; row < kSumRows; ++row) {
        const int64_t i = first + row * kSumColumns;
        const auto g = load_pack<kCount>(gradient + i);
        add_row_of_products(columns, g, load_pack<kCount>(z + i), load_pack<kCount>(x + i));
      }
    } else {
#pragma unroll 1
      for (int64_t row = 0; row < kSumRows; ++row) {
        const int64_t i = first + row * kSumColumns, left = tile.numel - i;
        const auto g = load_bounded<kCount>(gradient + i, left);
        add_row_of_products(columns, g, load_bounded<kCount>(z + i, left), load_bounded<kCount>(x + i, left));
      }
    }
  }
  const double sum = add_columns<Grad, Magnitudes>(columns, group_sums);
  if (threadIdx.x == 0) tile_sums[blockIdx.x] = weight * sum;
}

template <typename Grad>
void launch_inner_product(double weight, const void* z, const void* x, const SpanOnDevice* spans,
    int64_t span_count, int64_t range_numel, double* workspace, double* sum, Stream stream) {
  using Real = typename StateOf<Grad>::type;
  const int64_t tiles = tile_count(range_numel, span_count, kSumTileNumel);
  ZEROSCHED_LAUNCH((inner_product_of_tiles_kernel<Grad, Real>), tiles, SumShape<Grad>::kThreads, stream,
      weight, static_cast<const Real*>(z), static_cast<const Real*>(x), spans, span_count, workspace);
  ZEROSCHED_LAUNCH(
      add_tiles_kernel<Magnitudes>, 1, kAddTilesThreads, stream, spans, span_count, workspace, sum);
}

}  // namespace zerosched::kernels::cuda
