#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace zerosched::kernels {

/// The scalars of one step of one parameter group, computed on the host in double. Plain data, so that a GPU
/// kernel can read the same struct from device memory. Formulas: algorithms in arXiv 2405.15682.
struct ScheduleFreeScalars {
  double grad_scale = 1;            ///< 1/world size * loss scale * clip, applied to the summed gradient
  double lr = 0;                    ///< lr_k, warmup included
  double beta2 = 0;                 ///< decay of v
  double bias_correction2 = 1;      ///< 1 - beta2^(k+1)
  double eps = 0;
  double weight_decay = 0;
  double y_weight_before = 0;       ///< 1 - beta1 of the step that made the current y: y = lerp(x, z, this)
  double c = 0;                     ///< weight of z in the average: x = lerp(x, z, c)
  double y_weight = 0;              ///< 1 - beta1 now: y = lerp(x, z, this)
};

/// One flat range of a shard. All pointers point at element 0 of the range, no two ranges overlap.
/// z, x, v: float32 (float64 where param_dtype is float64). y: param_dtype. g: grad_dtype, which is
/// param_dtype or the type of z.
struct AdamWScheduleFreeRange {
  c10::ScalarType param_dtype;
  c10::ScalarType grad_dtype;
  void* y;        ///< written only; y before the step follows from x and z
  const void* g;
  void* z;
  void* x;
  void* v;
  int64_t numel;
};

}  // namespace zerosched::kernels
