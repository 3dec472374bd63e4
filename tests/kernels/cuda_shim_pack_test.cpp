// The CUDA pack kernel in the shim, under ASan and UBSan, against loops over the pieces of a layout.
#include "kernels/pack_cases.h"
#include "kernels/shim_memory.h"

#include "cuda_runtime.h"

#include <c10/util/Exception.h>

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;
using testing::Array;
using testing::Device;
using testing::PackCase;
using testing::PackData;

class CudaShimPack : public ::testing::Test {
 protected:
  void SetUp() override {
    cuda_shim::set_order(1);
    cuda_shim::set_multiprocessors(1);
  }

  /// Gradients, flat in memory of their own, at an offset in elements from 16 bytes.
  static void expect_packed(const PackCase& c, size_t offset) {
    SCOPED_TRACE(c.describe() + ", offset " + std::to_string(offset));
    PackData data(c);
    const auto gradients = data.upload<Device>(offset);
    Array stale(c.dtype, data.buffer_numel());
    std::memset(stale.data(), 0xff, stale.byte_count());
    const Device buffer(stale), report(data.report);
    std::vector<cuda::PackSource> sources = data.sources(testing::addresses_of(gradients));
    cuda::pack(c.dtype, data.bucket(buffer.data(), report.data()), sources.data(),
        static_cast<int64_t>(sources.size()), nullptr);
    EXPECT_TRUE(buffer.same_bits(data.packed()));
  }
};

TEST_F(CudaShimPack, BucketsAreThoseOfTheirLayout) {
  for (const PackCase& c : testing::pack_cases()) {
    for (const size_t offset : {0, 1}) expect_packed(c, offset);
  }
}

TEST_F(CudaShimPack, ManySlotsTakeSeveralLaunches) {
  for (const PackCase& c : testing::many_slots()) expect_packed(c, 0);
}

TEST_F(CudaShimPack, TilesOfBothSizes) {
  const std::vector<int64_t> sizes = {70'001, 3, 9'000, 64};
  for (const int multiprocessors : {1, 1000}) {
    cuda_shim::set_multiprocessors(multiprocessors);
    expect_packed({ScalarType::Float, ScalarType::Float, false, sizes, 3, 0.5, 32, true}, 0);
    expect_packed({ScalarType::BFloat16, ScalarType::Float, true, sizes, 1, 1, 0, false}, 0);
  }
}

TEST_F(CudaShimPack, EqualTypesKeepTheBitsOfNaN) {
  for (const ScalarType dtype :
      {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    PackData data({dtype, dtype, false, {100}, 1, 1, 0, false});
    std::memset(data.gradients[0].data(), 0xff, data.gradients[0].byte_count());
    const Device gradient(data.gradients[0]), buffer(Array(dtype, data.buffer_numel()));
    const auto sources = data.sources({gradient.data()});
    cuda::pack(dtype, data.bucket(buffer.data(), nullptr), sources.data(), 1, nullptr);
    EXPECT_TRUE(buffer.same_bits(data.packed())) << c10::toString(dtype);
  }
}

TEST_F(CudaShimPack, WrongCallsAreNamed) {
  PackData data({ScalarType::Float, ScalarType::Float, false, {100, 7}, 1, 1, 0, false});
  const Device a(data.gradients[0]), b(data.gradients[1]),
      buffer(Array(ScalarType::Float, data.buffer_numel() + 1));
  const auto sources = data.sources({a.data(), b.data()});
  const auto expect_named = [&](const char* part, auto change) {
    auto changed = sources;
    cuda::PackBucket bucket = data.bucket(buffer.data(), nullptr);
    change(changed, bucket);
    try {
      cuda::pack(ScalarType::Float, bucket, changed.data(), 2, nullptr);
      FAIL() << "taken: " << part;
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  expect_named("no kernel packs Double gradients into a Float bucket",
      [](auto& all, auto&) { all[1].dtype = ScalarType::Double; });
  expect_named("the one before ends at 132", [](auto& all, auto&) { all[0].numel = 132; });
  expect_named("aligned to 16 bytes",
      [](auto&, auto& bucket) { bucket.buffer = static_cast<char*>(bucket.buffer) + 4; });
  expect_named("aligned to 16 bytes", [](auto&, auto& bucket) { ++bucket.slice_numel; });
}

}  // namespace
}  // namespace zerosched::kernels
