// What the NCCL communicator's memory is, and when it goes.
#include "fakes/over_fake_nccl.h"
#include "support/gather.h"
#include "support/world.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

namespace zerosched {
namespace {

using testing::expect_nothing_left;
using testing::FakeNccl;
using testing::FakeRuntime;
using testing::on_all_ranks;
using testing::over_fake_nccl;

constexpr int64_t kNumel = 1000;
constexpr int kNccl = 1;  // streams in the order of their creation

at::Tensor values(double value, int64_t numel = kNumel) { return at::full({numel}, value, at::kFloat); }

// A tensor that the watching thread drops, which knows no stream, while the one that the trainer worked in still reads
// it. `how`: what that stream had to do with the communicator.
enum class Stranger { launched, waited, allocated };

bool freed_after_stranger(Stranger how) {
  FakeRuntime runtime;
  const auto communicator = over_fake_nccl(runtime);
  const auto main = runtime.current_stream(0);
  const auto copy = runtime.empty(kNumel, at::kFloat, 0);
  const auto other = runtime.create_stream(0);
  const auto in = [&](bool there, const auto& action) {
    runtime.set_current_stream(there ? other : main);
    action();
    runtime.set_current_stream(main);
  };
  at::Tensor tensor;
  std::shared_ptr<Work> work;
  in(how == Stranger::allocated,
      [&] { tensor = communicator->allocate(kNumel, at::kFloat, at::Device(at::kCUDA, 0)); });
  tensor.fill_(5);
  runtime.hold_stream(kNccl);
  in(how == Stranger::launched, [&] { work = communicator->broadcast(tensor, 0); });
  in(how == Stranger::waited, [&] { work->wait(); });
  runtime.copy(copy.data_ptr(), tensor.const_data_ptr(), kNumel * 4, other);
  tensor.reset();
  EXPECT_EQ(FakeNccl::instance().live_allocations, 1) << "the collective has it";
  runtime.hold_stream(
      kNccl + 1);  // now the other one is behind, and the watching thread is the last to let go
  while (!work->done()) std::this_thread::yield();
  work.reset();
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  EXPECT_EQ(FakeNccl::instance().live_allocations, 1);
  in(true, [&] { EXPECT_TRUE(at::equal(runtime.to_host(copy), values(5))); });
  runtime.hold_stream(-1);
  while (FakeNccl::instance().live_allocations > 0) std::this_thread::yield();
  const bool right = at::equal(copy, values(5));
  runtime.destroy_stream(other);
  return on_all_ranks(right);
}

TEST(NcclMemory, IsFreedAfterEveryStreamThatUsedIt) {
  EXPECT_TRUE(freed_after_stranger(Stranger::launched));
  EXPECT_TRUE(freed_after_stranger(Stranger::waited));
  EXPECT_TRUE(freed_after_stranger(Stranger::allocated));
}

// NCCL would take what comes to lie at its address for the window.
TEST(NcclMemory, IsNotFreedWhileItsWindowIsThere) {
  FakeRuntime runtime;
  const auto communicator = over_fake_nccl(runtime);
  auto& fake = FakeNccl::instance();
  auto tensor = communicator->allocate(kNumel, at::kFloat, at::Device(at::kCUDA, 0));
  fake.script.deregistering_fails = true;
  tensor.reset();
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  EXPECT_EQ(fake.live_allocations, 1);
  fake.live_allocations = fake.live_windows = 0;
}

TEST(NcclMemory, TakesWhatLibTorchOnlyKeeps) {
  FakeRuntime runtime;
  {
    const auto communicator = over_fake_nccl(runtime);
    auto& fake = FakeNccl::instance();
    const bool last = communicator->rank() == communicator->size() - 1;
    if (last) fake.script.mem_allocs_to_fail = 1;
    ::testing::internal::CaptureStderr();
    const auto tensor = communicator->allocate(kNumel, at::kFloat, at::Device(at::kCUDA, 0));
    EXPECT_EQ(runtime.caches_released, last ? 1 : 0);
    EXPECT_EQ(fake.live_windows, 1);
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
    if (last) fake.script.mem_allocs_to_fail = 2;
    ::testing::internal::CaptureStderr();
    for (int i = 0; i < 2; ++i) communicator->allocate(kNumel, at::kFloat, at::Device(at::kCUDA, 0));
    EXPECT_EQ(fake.live_windows, 1) << "ordinary memory";
    const auto warning = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(warning.find("ncclMemAlloc has no 4096 bytes") != std::string::npos, last) << warning;
    EXPECT_EQ(warning.find("ncclMemAlloc"), warning.rfind("ncclMemAlloc")) << "once";
  }
  expect_nothing_left(runtime);
}

TEST(NcclMemory, IsOrdinaryForGradientsAndWhereNobodyWantsWindows) {
  FakeRuntime runtime;
  auto& fake = FakeNccl::instance();
  const at::Device device(at::kCUDA, 0);
  {
    const auto communicator = over_fake_nccl(runtime);
    const auto gradients = communicator->allocate(kNumel, at::kFloat, device, Collective::reduce_scatter);
    EXPECT_EQ(fake.live_allocations, 0);
    const auto parameters = communicator->allocate(kNumel, at::kFloat, device);
    EXPECT_EQ(fake.live_windows, 1);
  }
  {
    detail::NcclOptions options;
    options.timeout_seconds = 20;
    options.api = &fake.api();
    options.runtime = &runtime;
    options.symmetric_memory = false;
    const auto communicator = detail::make_nccl_communicator(*testing::world(), std::nullopt, options);
    const auto tensor = communicator->allocate(kNumel, at::kFloat, device);
    EXPECT_EQ(fake.live_allocations, 0);
    tensor.fill_(1);
    communicator->all_reduce(tensor)->wait();
    EXPECT_TRUE(at::equal(runtime.to_host(tensor), values(communicator->size())));
  }
  expect_nothing_left(runtime);
}

}  // namespace
}  // namespace zerosched
