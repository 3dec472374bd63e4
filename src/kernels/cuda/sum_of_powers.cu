#include "kernels/cuda/sum_of_powers.cuh"

namespace zerosched::kernels::cuda {

template void launch_sum_of_powers<float>(
    double, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_sum_of_powers<double>(
    double, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_sum_of_powers<BFloat16>(
    double, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_sum_of_powers<Float16>(
    double, const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_squares_by_parameter<float>(
    const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_squares_by_parameter<double>(
    const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_squares_by_parameter<BFloat16>(
    const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);
template void launch_squares_by_parameter<Float16>(
    const SpanOnDevice*, int64_t, int64_t, double*, double*, Stream);

}  // namespace zerosched::kernels::cuda
