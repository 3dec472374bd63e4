#pragma once

#include "kernels/cuda/pack_bucket.h"

#include <cstdint>

namespace zerosched::kernels::cuda {

enum class ElementType : uint8_t { float32, float64, bfloat16, float16 };

/// As PackSource, of a dtype that needs no LibTorch.
struct PackSlot {
  const void* gradient;
  int64_t begin;
  int64_t numel;
  ElementType type;
};

/// What one launch is told: a run of a bucket's slots, and which elements it writes. Goes as a kernel's parameter, so
/// that a launch needs no upload, and nothing that has to live until the device gets there.
template <int kSlots>
struct PackArguments {
  PackBucket bucket;
  int64_t begin, end;    ///< of the bucket's elements: from the first slot of this launch to that of the next
  int64_t flags_before;  ///< of the slice that `begin` is in: slots of the launches before
  int64_t tile_count;
  int tile_log2;  ///< of the elements of a tile
  int slot_count;
  const void* gradient[kSlots];
  int64_t slot_begin[kSlots];
  int64_t slot_numel[kSlots];
  ElementType type[kSlots];
};

// What every GPU takes, and what GPUs from sm_70 on take with CUDA 12.1 and later.
inline constexpr int kFewSlots = 128;
inline constexpr int kManySlots = 1280;
static_assert(sizeof(PackArguments<kFewSlots>) <= 4096 - 16, "a kernel's parameters, with the weight");
static_assert(sizeof(PackArguments<kManySlots>) <= 32764 - 16, "a kernel's parameters, with the weight");

}  // namespace zerosched::kernels::cuda
