#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack_table.h"
#include "kernels/element_types.h"
#include "kernels/gradient_weight.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

// A bucket's buffer, written from its first byte to its last in one pass. Slices are cut into tiles, of which each
// warp takes one after the other, and searches for its slots: balanced for one huge slot and for thousands of small
// ones, which may begin and end within a tile.
namespace zerosched::kernels::cuda {

inline constexpr int kPackThreads = 256;
inline constexpr int kPackWarps = kPackThreads / kWarpThreads;
// What registers leave room for: 20 KiB of reads in flight, twice what hides the latency of HBM3.
inline constexpr int kPackBlocksPerMultiprocessor = 5;
// 8 accesses of 16 bytes by each thread of a warp, or 2 where there are too few tiles for all.
inline constexpr int kPackTileBytesLog2 = 12;
inline constexpr int kSmallPackTileBytesLog2 = 10;

/// The first slot of the launch that ends after element `i` of the bucket; slot_count if none does.
template <int kSlots>
__device__ __forceinline__ int slot_ending_after(const PackArguments<kSlots>& a, int64_t i) {
  int first = 0;
  for (int end = a.slot_count; first < end;) {
    const int middle = (first + end) / 2;
    if (a.slot_begin[middle] + a.slot_numel[middle] <= i) {
      first = middle + 1;
    } else {
      end = middle;
    }
  }
  return first;
}

template <typename To>
__device__ __forceinline__ void zero_elements(To* to, int64_t numel, int lane) {
  constexpr int kCount = 16 / sizeof(To);
  // A slot ends anywhere, but what follows it begins on 16 bytes.
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % 16 / sizeof(To));
  const int64_t to_boundary = past == 0 ? 0 : kCount - past;
  const int64_t head = to_boundary < numel ? to_boundary : numel;
  if (lane < head) to[lane] = To{};
  const int64_t in_packs = head + (numel - head) / kCount * kCount;
#pragma unroll 1
  for (int64_t i = head + lane * kCount; i < in_packs; i += kWarpThreads * kCount) {
    store_pack(to + i, Pack<To, kCount>{});
  }
#pragma unroll 1
  for (int64_t i = in_packs + lane; i < numel; i += kWarpThreads) to[i] = To{};
}

template <typename From, typename To, typename How>
__device__ __forceinline__ void copy_elements(
    To* to, const void* gradient, int64_t first, int64_t numel, int lane, const How& how) {
  // Of what is written: a warp's stores leave no gaps, which would cost more than narrow loads do.
  constexpr int kCount = 16 / sizeof(To);
  const From* from = in_global_memory<From>(gradient) + first;
  const int64_t in_packs = is_pack_aligned(from) && is_pack_aligned(to) ? numel / kCount * kCount : 0;
#pragma unroll 1
  for (int64_t i = lane * kCount; i < in_packs; i += kWarpThreads * kCount) {
    const Pack<From, kCount> read = load_pack<kCount>(from + i);
    Pack<To, kCount> written;
#pragma unroll
    for (int j = 0; j < kCount; ++j) how.write(written.values[j], read.values[j]);
    store_pack(to + i, written);
  }
#pragma unroll 1
  for (int64_t i = in_packs + lane; i < numel; i += kWarpThreads) {
    To element;
    how.write(element, from[i]);
    to[i] = element;
  }
}

/// Of the types that gradients in a bucket of type To can have.
template <typename To, typename How>
__device__ __forceinline__ void copy_gradient(
    ElementType type, To* to, const void* gradient, int64_t first, int64_t numel, int lane, const How& how) {
  if constexpr (std::is_same_v<To, double>) {
    copy_elements<double>(to, gradient, first, numel, lane, how);
  } else if (type == ElementType::float32) {
    copy_elements<float>(to, gradient, first, numel, lane, how);
  } else if constexpr (!std::is_same_v<To, float>) {
    copy_elements<To>(to, gradient, first, numel, lane, how);
  } else if (type == ElementType::bfloat16) {
    copy_elements<BFloat16>(to, gradient, first, numel, lane, how);
  } else {
    copy_elements<Float16>(to, gradient, first, numel, lane, how);
  }
}

/// Elements [begin, end) of the bucket, of one slice; to[begin] is the first of them.
template <typename To, typename How, int kSlots>
__device__ __forceinline__ void pack_elements(
    const PackArguments<kSlots>& a, To* to, int64_t begin, int64_t end, int lane, const How& how) {
  int64_t done = begin;
#pragma unroll 1
  for (int slot = slot_ending_after(a, begin); slot < a.slot_count && a.slot_begin[slot] < end; ++slot) {
    if (a.gradient[slot] == nullptr) continue;
    const int64_t slot_begin = a.slot_begin[slot];
    const int64_t slot_end = slot_begin + a.slot_numel[slot];
    const int64_t copy_begin = slot_begin > begin ? slot_begin : begin;
    const int64_t copy_end = slot_end < end ? slot_end : end;
    zero_elements(to + done, copy_begin - done, lane);
    copy_gradient(a.type[slot], to + copy_begin, a.gradient[slot], copy_begin - slot_begin,
        copy_end - copy_begin, lane, how);
    done = copy_end;
  }
  zero_elements(to + done, end - done, lane);
}

/// What follows a slice's gradients. The slots that overlap it are numbered from 0 in their order, as by
/// Piece::flag; flags of no slot are 0. The launch in which the slice ends writes those, and the report.
template <typename To, int kSlots>
__device__ __forceinline__ void pack_flags_and_report(
    const PackArguments<kSlots>& a, int64_t slice, int lane) {
  const int64_t slice_begin = slice * a.bucket.shard_numel;
  const int64_t slice_end = slice_begin + a.bucket.shard_numel;
  const bool ends_here = slice_end <= a.end;
  To* flags = static_cast<To*>(a.bucket.buffer) + slice * a.bucket.slice_numel + a.bucket.shard_numel;
  const int first_slot = slot_ending_after(a, slice_begin);
  const int64_t before = slice_begin < a.begin ? a.flags_before : 0;
#pragma unroll 1
  for (int64_t flag = before + lane; flag < a.bucket.flag_numel; flag += kWarpThreads) {
    const int64_t slot = first_slot + flag - before;
    const bool is_of_slot = slot < a.slot_count && a.slot_begin[slot] < slice_end;
    if (!is_of_slot && !ends_here) break;
    const bool has_gradient = is_of_slot && a.gradient[slot] != nullptr;
    store(flags[flag], static_cast<typename StateOf<To>::type>(has_gradient ? 1 : 0));
  }
  if (!ends_here) return;
  const int64_t report_numel = a.bucket.slice_numel - a.bucket.shard_numel - a.bucket.flag_numel;
#pragma unroll 1
  for (int64_t i = lane; i < report_numel; i += kWarpThreads) {
    flags[a.bucket.flag_numel + i] = static_cast<const To*>(a.bucket.report)[i];
  }
}

template <typename To, typename How, int kSlots>
__global__ void __launch_bounds__(kPackThreads, kPackBlocksPerMultiprocessor)
    pack_kernel(const __grid_constant__ PackArguments<kSlots> a, const How how) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int64_t shard_numel = a.bucket.shard_numel;
  const int64_t tile_numel = int64_t{1} << a.tile_log2;
  const int64_t tiles_of_slice = ((shard_numel - 1) >> a.tile_log2) + 1;
  const int64_t first_slice = a.begin / shard_numel;
  for (int64_t number = static_cast<int64_t>(blockIdx.x) * kPackWarps + warp; number < a.tile_count;
       number += static_cast<int64_t>(gridDim.x) * kPackWarps) {
    const int64_t slice = first_slice + number / tiles_of_slice;
    const int64_t tile = number % tiles_of_slice;
    if (tile == 0) pack_flags_and_report<To>(a, slice, lane);
    const int64_t slice_begin = slice * shard_numel;
    const int64_t slice_end = slice_begin + shard_numel;
    const int64_t tile_begin = slice_begin + tile * tile_numel;
    const int64_t tile_end = tile_begin + tile_numel < slice_end ? tile_begin + tile_numel : slice_end;
    const int64_t begin = tile_begin > a.begin ? tile_begin : a.begin;
    const int64_t end = tile_end < a.end ? tile_end : a.end;
    if (begin >= end) continue;
    // Of every slice before, flags and report lie between.
    To* to = static_cast<To*>(a.bucket.buffer) + slice * (a.bucket.slice_numel - shard_numel);
    pack_elements(a, to, begin, end, lane, how);
  }
}

/// slots: `count` of them, of which the first is number `first` of the bucket's `total`.
template <typename To, int kSlots>
void launch_pack_run(const PackBucket& bucket, const PackSlot* slots, int64_t total, int64_t first,
    int64_t count, int64_t multiprocessors, Stream stream) {
  const int64_t bucket_numel = bucket.world_size * bucket.shard_numel;
  PackArguments<kSlots> a{};
  a.bucket = bucket;
  a.begin = first == 0 ? 0 : slots[first].begin;
  a.end = first + count == total ? bucket_numel : slots[first + count].begin;
  const int64_t slice_begin = a.begin / bucket.shard_numel * bucket.shard_numel;
  for (int64_t s = first; s > 0 && slots[s - 1].begin + slots[s - 1].numel > slice_begin; --s)
    ++a.flags_before;
  a.slot_count = static_cast<int>(count);
  for (int64_t s = 0; s < count; ++s) {
    const PackSlot& slot = slots[first + s];
    a.gradient[s] = slot.gradient;
    a.slot_begin[s] = slot.begin;
    a.slot_numel[s] = slot.numel;
    a.type[s] = slot.type;
  }
  const int64_t slices = (a.end - 1) / bucket.shard_numel - a.begin / bucket.shard_numel + 1;
  const auto use_tiles_of = [&](int bytes_log2) {
    a.tile_log2 = bytes_log2 - log2_of(sizeof(To));
    a.tile_count = slices * (((bucket.shard_numel - 1) >> a.tile_log2) + 1);
  };
  use_tiles_of(kPackTileBytesLog2);
  if (a.tile_count < 2 * multiprocessors * kPackWarps) use_tiles_of(kSmallPackTileBytesLog2);
  const int64_t blocks =
      std::min((a.tile_count + kPackWarps - 1) / kPackWarps, multiprocessors * kPackBlocksPerMultiprocessor);
  using Real = typename StateOf<To>::type;
  if (bucket.weight == 1) {
    ZEROSCHED_LAUNCH((pack_kernel<To, Converted, kSlots>), blocks, kPackThreads, stream, a, Converted());
  } else {
    ZEROSCHED_LAUNCH((pack_kernel<To, Weighted<Real>, kSlots>), blocks, kPackThreads, stream, a,
        Weighted<Real>{static_cast<Real>(bucket.weight)});
  }
}

template <typename To>
void launch_pack(
    const PackBucket& bucket, const PackSlot* slots, int64_t count, int64_t multiprocessors, Stream stream) {
  int64_t first = 0;
  do {
    const int64_t left = count - first;
    const int64_t taken = std::min<int64_t>(left, kManySlots);
    if (left <= kFewSlots) {
      launch_pack_run<To, kFewSlots>(bucket, slots, count, first, taken, multiprocessors, stream);
    } else {
      launch_pack_run<To, kManySlots>(bucket, slots, count, first, taken, multiprocessors, stream);
    }
    first += taken;
  } while (first < count);
}

}  // namespace zerosched::kernels::cuda
