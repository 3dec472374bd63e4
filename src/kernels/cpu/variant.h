#pragma once

#include "kernels/update.h"

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace zerosched::kernels {

/// The kernels compiled for one instruction set, on one thread. All variants give the same bits.
struct Variant {
  const char* name;
  /// As kernels::update. `out_of_cache` asks for memory ahead of use and writes y past the caches: faster where
  /// the range would not stay in them, slower where it would.
  bool (*update)(Rule rule, const UpdateRange& range, const StepScalars& scalars, bool out_of_cache);
  void (*interpolate)(
      c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight, int64_t numel);
  /// Sum of squares of a tile (summation.h), of at most kSumTileNumel elements.
  double (*sum_tile)(c10::ScalarType dtype, const void* data, int64_t numel);
  /// The same of |g|^p, and the largest |g| for p = infinity.
  double (*sum_powers_of_tile)(double p, c10::ScalarType dtype, const void* data, int64_t numel);
  /// As kernels::inner_product without a weight, of a tile.
  double (*inner_product_of_tile)(
      c10::ScalarType grad_dtype, const void* g, const void* z, const void* x, int64_t numel);
  /// As kernels::copy_gradient; `out_of_cache` as for update.
  bool (*copy_gradient)(c10::ScalarType to_dtype, void* to, c10::ScalarType from_dtype, const void* from,
      int64_t numel, double weight, bool out_of_cache);
  void (*clamp_gradient)(c10::ScalarType dtype, void* data, int64_t numel, double limit);
};

extern const Variant kBaseline;
#ifdef ZEROSCHED_X86_VARIANTS
extern const Variant kAvx2;
extern const Variant kAvx512;
#endif

/// Those that this processor can run, the fastest last.
std::vector<const Variant*> runnable_variants();

}  // namespace zerosched::kernels
