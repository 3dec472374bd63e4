#pragma once

#include "kernels/device_memory.h"
#include "kernels/ranges.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

// What benchmarks of kernels work on, and the copies that they are compared with.
namespace zerosched::testing {

/// 1,048,576 normal numbers, or their squares, 0 in a share of the rows of 1,024 that is the same for all seeds.
kernels::testing::Array random_block(c10::ScalarType dtype, uint32_t seed, double zero_rows, bool squares);

/// Fills `bytes` of memory, a whole number of elements, with copies of the block.
void spread(const kernels::testing::DeviceMemory& memory, size_t bytes, const kernels::testing::Array& block);

/// Bytes per second, read and written together, of copies from device to device that move `bytes` in `pieces`.
double copy_rate(size_t bytes, int64_t pieces, int repetitions, cudaStream_t stream);

}  // namespace zerosched::testing
