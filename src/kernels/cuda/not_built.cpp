// In place of cuda_kernels.cpp where CUDA is not built.
#include "base/check.h"
#include "kernels/cuda/cuda_kernels.h"

namespace zerosched::kernels::cuda {
namespace {

[[noreturn]] void not_built() {
  ZEROSCHED_CHECK(
      false, "zerosched was built without CUDA: configure it with -DZEROSCHED_CUDA=ON, or train on the CPU.");
}

}  // namespace

void update(Rule, const StepScalars&, c10::ScalarType, c10::ScalarType, const ShardUpdate&, Stream) {
  not_built();
}
void interpolate(c10::ScalarType, void*, const void*, const void*, double, int64_t, Stream) { not_built(); }
int64_t sum_of_squares_workspace_numel(int64_t, int64_t) { not_built(); }
void sum_of_squares(c10::ScalarType, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream) {
  not_built();
}
void sum_of_powers(c10::ScalarType, double, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream) {
  not_built();
}
void inner_product(c10::ScalarType, double, const void*, const void*, const SpanOnDevice*, int64_t, int64_t,
    double*, double*, Stream) {
  not_built();
}
void squares_by_parameter(c10::ScalarType, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream) {
  not_built();
}
void max_abs(c10::ScalarType, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream) {
  not_built();
}
void clamp_gradient(c10::ScalarType, const SpanOnDevice*, int64_t, int64_t, double, Stream) { not_built(); }
void pack(c10::ScalarType, const PackBucket&, const PackSource*, int64_t, Stream) { not_built(); }
void gradient_norm(
    const double*, const StepScalars*, std::optional<double>, bool, c10::ScalarType, GradientNorm*, Stream) {
  not_built();
}

}  // namespace zerosched::kernels::cuda
