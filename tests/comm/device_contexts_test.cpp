// A rank makes no context on another rank's GPU: a context takes hundreds of MB, and those of all ranks of a node would
// be on the first.
#include "comm/mpi/mpi_backend.h"
#include "session/placement.h"
#include "support/gather.h"
#include "support/world.h"

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#ifdef ZEROSCHED_TEST_NCCL
#include "fakes/over_fake_nccl.h"
#else
#include "fakes/fake_runtime.h"
#endif

#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <thread>

namespace zerosched {
namespace {

using testing::FakeRuntime;

constexpr int kDevices = 4;

/// Goes back to where it came from with the call that makes a context.
class OldRuntime final : public FakeRuntime {
 public:
  OldRuntime() : FakeRuntime(kDevices) {}
  void restore_device(int device) override { exchange_device(device); }
};

/// Whose threads stay on the device that threads begin with.
class CarelessRuntime final : public FakeRuntime {
 public:
  CarelessRuntime() : FakeRuntime(kDevices) {}
  void begin_thread(int) override { touch_current("begin_thread"); }
};

using Make = std::function<std::shared_ptr<Communicator>(FakeRuntime&)>;

std::set<int> touched(FakeRuntime& runtime, const Make& make) {
  const int own = testing::world()->local_rank() % kDevices;
  runtime.forget_touched();
  {
    const auto communicator = make(runtime);
    const auto other = communicator->duplicate();
    auto flat = communicator->allocate(8 * communicator->size(), at::kFloat, at::Device(at::kCUDA, own));
    const auto shard = runtime.empty(8, at::kFloat, own);
    communicator->all_gather(flat)->wait();
    const auto work = other->reduce_scatter(flat, shard);
    while (!work->done()) std::this_thread::yield();
    work->wait();
    flat.reset();
    communicator->barrier()->wait();
    std::this_thread::sleep_for(std::chrono::milliseconds(60));  // threads look
  }
  std::set<int> devices;
  for (const auto& [device, calls] : runtime.touched()) devices.insert(device);
  return devices;
}

std::shared_ptr<Communicator> staged(FakeRuntime& runtime) {
  detail::MpiOptions options;
  options.timeout_seconds = 20;
  options.runtime = &runtime;
  return detail::make_mpi_communicator(MPI_COMM_WORLD, options);
}

TEST(DeviceContexts, OfTensorsOverMpiAreOnTheRanksOwnDeviceAlone) {
  const int own = testing::world()->local_rank() % kDevices;
  FakeRuntime runtime(kDevices);
  EXPECT_EQ(touched(runtime, staged), std::set<int>{own});
  OldRuntime old;
  EXPECT_EQ(touched(old, staged), (std::set<int>{0, own})) << "device 0, where scopes came from";
}

#ifdef ZEROSCHED_TEST_NCCL

std::shared_ptr<Communicator> nccl(FakeRuntime& runtime) { return testing::over_fake_nccl(runtime); }

TEST(DeviceContexts, OfNcclAreOnTheRanksOwnDeviceAlone) {
  const int own = testing::world()->local_rank() % kDevices;
  FakeRuntime runtime(kDevices);
  EXPECT_EQ(touched(runtime, nccl), std::set<int>{own});
  OldRuntime old;
  EXPECT_EQ(touched(old, nccl), (std::set<int>{0, own})) << "device 0, where scopes came from";
  CarelessRuntime careless;
  EXPECT_EQ(touched(careless, nccl), (std::set<int>{0, own})) << "device 0, where threads begin";
}

#endif

// What a program does without a device of its own then, too.
TEST(DeviceContexts, ASessionMakesItsDeviceTheThreadsOwn) {
  FakeRuntime runtime(kDevices);
  runtime.forget_touched();
  const auto root = testing::world();
  const auto placed = detail::place_session(
      root, SessionOptions(), runtime, [&](at::Device) { return testing::world()->duplicate(); });
  runtime.touch_current("the program");
  const int own = root->local_rank() % kDevices;
  EXPECT_EQ(placed.device, at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(own)));
  ASSERT_EQ(runtime.touched().size(), 1u);
  EXPECT_EQ(runtime.touched().count(own), 1u);
}

}  // namespace
}  // namespace zerosched
