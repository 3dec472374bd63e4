#pragma once

#include "kernels/update.h"

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace zerosched::kernels {

/// The kernels compiled for one instruction set, on one thread. All variants give the same bits.
struct Variant {
  const char* name;
  /// `out_of_cache` asks for memory ahead of use and writes y past the caches: faster where the range would not
  /// stay in them, slower where it would.
  void (*update)(Rule rule, const UpdateRange& range, const StepScalars& scalars, bool out_of_cache);
  void (*interpolate)(
      c10::ScalarType param_dtype, void* out, const void* x, const void* z, double weight, int64_t numel);
  /// Sum of squares of a tile (summation.h), of at most kSumTileNumel elements.
  double (*sum_tile)(c10::ScalarType dtype, const void* data, int64_t numel);
};

extern const Variant kBaseline;
#ifdef ZEROSCHED_X86_VARIANTS
extern const Variant kAvx2;
extern const Variant kAvx512;
#endif

/// Those that this processor can run, the fastest last.
std::vector<const Variant*> runnable_variants();

}  // namespace zerosched::kernels
