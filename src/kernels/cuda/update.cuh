#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/tiles.cuh"
#include "kernels/element_types.h"
#include "kernels/rules/select.h"

#include <algorithm>
#include <cstdint>

namespace zerosched::kernels::cuda {

inline constexpr int kUpdateThreads = 256;
// As many blocks as leave registers for every load of a pack to be in flight at once: 3 to 9 of 16 bytes a thread.
template <typename Param>
inline constexpr int kUpdateBlocksPerMultiprocessor = sizeof(Param) == 8 ? 2 : 3;

template <typename Param, typename Real>
struct UpdateArguments {
  Real* state[kMaxStateTensors];
  const SpanOnDevice* spans;
  int64_t span_count;
  Tiling tiling;
  const StepScalars* scalars;
  const GradientNorm* norm;  ///< null: no clipping
  int32_t* not_finite;       ///< null: not looked at
};

/// Elements that a thread takes at a time: every access is of 16 bytes, or of several such.
template <typename Param, typename Grad>
inline constexpr int kUpdatePack = 16 / (sizeof(Param) < sizeof(Grad) ? sizeof(Param) : sizeof(Grad));

/// finite: as of zero_if_finite, over the first and the last state tensor.
template <typename UpdateRule, typename Param, typename Grad, typename Real>
__device__ __forceinline__ void update_pack(const UpdateArguments<Param, Real>& a, int64_t i, Param* to,
    const Grad* gradient, const typename UpdateRule::template Coefficients<Real>& s, Real& finite) {
  constexpr int kCount = kUpdatePack<Param, Grad>;
  constexpr bool kHasThird = UpdateRule::kStateTensors > 2;
  constexpr bool kHasFourth = UpdateRule::kStateTensors > 3;
  const Pack<Grad, kCount> g = load_pack<kCount>(gradient);
  Pack<Real, kCount> first = load_pack<kCount>(a.state[0] + i);
  Pack<Real, kCount> second = load_pack<kCount>(a.state[1] + i);
  Pack<Real, kCount> third = {};
  if constexpr (kHasThird) third = load_pack<kCount>(a.state[2] + i);
  Pack<Real, kCount> fourth = {};
  if constexpr (kHasFourth) fourth = load_pack<kCount>(a.state[3] + i);
  Pack<Param, kCount> y;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const Real y_j = UpdateRule::apply(static_cast<Real>(load(g.values[j])), first.values[j],
        second.values[j], third.values[j], fourth.values[j], s);
    store(y.values[j], y_j);
    finite = zero_if_finite(finite, first.values[j]);
    finite = zero_if_finite(finite, kHasFourth  ? fourth.values[j]
                                    : kHasThird ? third.values[j]
                                                : second.values[j]);
  }
  store_pack(a.state[0] + i, first);
  store_pack(a.state[1] + i, second);
  if constexpr (kHasThird) store_pack(a.state[2] + i, third);
  if constexpr (kHasFourth) store_pack(a.state[3] + i, fourth);
  store_pack(to, y);
}

template <typename UpdateRule, typename Param, typename Grad, typename Real>
__device__ __forceinline__ void update_element(const UpdateArguments<Param, Real>& a, int64_t i, Param* to,
    const Grad* gradient, const typename UpdateRule::template Coefficients<Real>& s, Real& finite) {
  constexpr bool kHasThird = UpdateRule::kStateTensors > 2;
  constexpr bool kHasFourth = UpdateRule::kStateTensors > 3;
  Real first = a.state[0][i];
  Real second = a.state[1][i];
  Real third = 0;
  if constexpr (kHasThird) third = a.state[2][i];
  Real fourth = 0;
  if constexpr (kHasFourth) fourth = a.state[3][i];
  store(*to, UpdateRule::apply(static_cast<Real>(load(*gradient)), first, second, third, fourth, s));
  a.state[0][i] = first;
  a.state[1][i] = second;
  if constexpr (kHasThird) a.state[2][i] = third;
  if constexpr (kHasFourth) a.state[3][i] = fourth;
  finite = zero_if_finite(zero_if_finite(finite, first), kHasFourth ? fourth : kHasThird ? third : second);
}

/// One step of a part of the shards. Blocks take tiles in turn; an element's result depends on that element alone.
template <typename UpdateRule, typename Param, typename Grad, typename Real>
__global__ void __launch_bounds__(kUpdateThreads, kUpdateBlocksPerMultiprocessor<Param>)
    update_kernel(const UpdateArguments<Param, Real> a) {
  using Coefficients = typename UpdateRule::template Coefficients<Real>;
  constexpr int kCount = kUpdatePack<Param, Grad>;
  __shared__ SharedStorage<Coefficients> shared;
  if (a.norm != nullptr && a.norm->found_inf != 0) return;
  if (threadIdx.x == 0) {
    StepScalars scalars = *a.scalars;
    if (a.norm != nullptr) scalars.grad_scale *= a.norm->clip_factor;
    shared.construct(scalars);
  }
  __syncthreads();
  const Coefficients s = shared.value();
  Real finite = 0;
  const TiledSpans spans(a.spans, a.span_count, a.tiling.tile_log2);
  for (int64_t number = blockIdx.x; number < a.tiling.tile_count; number += gridDim.x) {
    const Tile tile = spans.tile(number);
    if (tile.numel == 0) continue;
    const SpanOnDevice span = spans[tile.span];
    if (!is_used<Grad>(span)) continue;
    const Grad* gradient = in_global_memory<Grad>(span.values) + tile.begin;
    Param* y = const_cast<Param*>(in_global_memory<Param>(span.y)) + tile.begin;
    const int64_t begin = span.begin + tile.begin;
    const int64_t in_packs =
        is_pack_aligned(gradient) && is_pack_aligned(y) ? tile.numel / kCount * kCount : 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x * kCount; i < in_packs; i += kUpdateThreads * kCount) {
      update_pack<UpdateRule>(a, begin + i, y + i, gradient + i, s, finite);
    }
#pragma unroll 1
    for (int64_t i = in_packs + threadIdx.x; i < tile.numel; i += kUpdateThreads) {
      update_element<UpdateRule>(a, begin + i, y + i, gradient + i, s, finite);
    }
  }
  if (finite != 0 && a.not_finite != nullptr) atomicOr(a.not_finite, 1);
}

template <typename Param, typename Grad>
void launch_update(
    Rule rule, const StepScalars& scalars, const ShardUpdate& u, int64_t multiprocessors, Stream stream) {
  using Real = typename StateOf<Param>::type;
  UpdateArguments<Param, Real> a{{}, u.spans, u.span_count,
      Tiling(u.range_numel, u.span_count, kUpdateThreads, sizeof(Param), multiprocessors), u.scalars, u.norm,
      u.not_finite};
  for (size_t i = 0; i < kMaxStateTensors; ++i) a.state[i] = static_cast<Real*>(u.state[i]);
  const int64_t blocks =
      std::min(a.tiling.tile_count, multiprocessors * kUpdateBlocksPerMultiprocessor<Param>);
  // In a box always: the comparisons with infinity hide behind memory, and spare a second set of kernels.
  with_rule_in<Box>(rule, scalars, [&](auto chosen) {
    ZEROSCHED_LAUNCH((update_kernel<decltype(chosen), Param, Grad, Real>), blocks, kUpdateThreads, stream, a);
  });
}

}  // namespace zerosched::kernels::cuda
