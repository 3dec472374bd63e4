// The CUDA pack kernel on a GPU, as in the shim, and a bucket that no CPU would wait for.
#include "kernels/on_gpu.h"
#include "kernels/pack_cases.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::Array;
using testing::CudaStream;
using testing::DeviceMemory;
using testing::PackCase;
using testing::PackData;

class CudaGpuPack : public testing::OnGpu {
 protected:
  static void expect_packed(const PackCase& c, size_t offset) {
    SCOPED_TRACE(c.describe() + ", offset " + std::to_string(offset));
    PackData data(c);
    const auto gradients = data.upload<DeviceMemory>(offset);
    Array read(c.dtype, data.buffer_numel());
    std::memset(read.data(), 0xff, read.byte_count());
    const DeviceMemory buffer(read), report(data.report);
    std::vector<cuda::PackSource> sources = data.sources(testing::addresses_of(gradients));
    const CudaStream stream;
    cuda::pack(c.dtype, data.bucket(buffer.data(), report.data()), sources.data(),
        static_cast<int64_t>(sources.size()), stream);
    std::memset(sources.data(), 0, sources.size() * sizeof(cuda::PackSource));  // the caller's again
    stream.wait();
    buffer.read(read.data());
    EXPECT_TRUE(read.same_bits(data.packed()));
  }
};

TEST_F(CudaGpuPack, BucketsAreThoseOfTheirLayout) {
  for (const PackCase& c : testing::pack_cases()) {
    for (const size_t offset : {0, 1}) expect_packed(c, offset);
  }
}

TEST_F(CudaGpuPack, ManySlotsTakeSeveralLaunches) {
  for (const PackCase& c : testing::many_slots()) expect_packed(c, 0);
}

TEST_F(CudaGpuPack, ABucketOfTheUsualSize) {
  const std::vector<int64_t> sizes = {50'257 * 64, 768, 768, 768 * 3072, 3072, 1'000'003};
  for (const int64_t ranks : {8, 1024}) {
    expect_packed({ScalarType::Float, ScalarType::Float, false, sizes, ranks, 1, 128, true}, 0);
    expect_packed({ScalarType::BFloat16, ScalarType::BFloat16, false, sizes, ranks, 0.5, 128, true}, 0);
  }
}

}  // namespace
}  // namespace zerosched::kernels
