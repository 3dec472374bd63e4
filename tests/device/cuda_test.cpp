// What the real device layer says on a machine without GPUs. What it does on one is in
// comm_gpu_conformance_test.
#include "device/runtime.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

namespace zerosched::device {
namespace {

TEST(Cuda, WithoutAGpuSaysSoAndThrowsNothingElse) {
  if (cuda().device_count() > 0) return;
  const std::string reason = cuda().why_no_device();
  EXPECT_TRUE(reason.find("ZEROSCHED_CUDA=ON") != std::string::npos ||
              reason.find("CUDA finds no GPU") != std::string::npos)
      << reason;
  EXPECT_EQ(cuda().device_of(at::zeros({1})), at::Device(at::kCPU));
  EXPECT_THROW(cuda().create_stream(0), c10::Error);
  EXPECT_THROW(cuda().empty(1, at::kFloat, 0), c10::Error);
  EXPECT_THROW(cuda().allocate_pinned(1), c10::Error);
}

}  // namespace
}  // namespace zerosched::device
