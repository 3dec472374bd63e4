// The NCCL communicator's stream rules: every access comes after what it needs, nothing is freed or reused
// early, and each wait that sees to it is missed when it is forgotten.
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
constexpr int kCurrent = 0;  // streams in the order of their creation
constexpr int kNccl = 1;

at::Tensor values(double value, int64_t numel = kNumel) { return at::full({numel}, value, at::kFloat); }

// Which stream gets on first where events leave it open.
enum class First { caller, nccl };

// Writes, reduces out of place, and reads; whether the sum came out on all ranks.
bool sums_right(
    FakeRuntime& runtime, First first, const std::function<void()>& forget = [] {}) {
  const auto communicator = over_fake_nccl(runtime);
  const int size = communicator->size();
  runtime.hold_stream(first == First::caller ? kNccl : -1);
  const auto flat = runtime.to_device(values(communicator->rank() + 1, kNumel * size));
  const auto shard = runtime.to_device(values(0));
  forget();
  const auto work = communicator->reduce_scatter(flat, shard);
  while (first == First::nccl && !work->done()) std::this_thread::yield();
  work->wait();
  const bool right = at::equal(runtime.to_host(shard), values(size * (size + 1) / 2));
  runtime.hold_stream(-1);
  return on_all_ranks(right);
}

TEST(NcclOrder, SumsWhatWasWritten) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    for (const auto first : {First::caller, First::nccl}) {
      FakeRuntime runtime(1, seed);
      EXPECT_TRUE(sums_right(runtime, first)) << "seed " << seed;
      expect_nothing_left(runtime);
    }
  }
}

TEST(NcclOrder, EveryWaitAndRecordIsNeeded) {
  const auto forgetting = [](First first, void (FakeRuntime::*forget)(int), int nth) {
    FakeRuntime runtime;
    const bool right = sums_right(runtime, first, [&] { (runtime.*forget)(nth); });
    EXPECT_TRUE(runtime.has_forgotten());
    return right;
  };
  EXPECT_FALSE(forgetting(First::nccl, &FakeRuntime::forget_wait, 0)) << "NCCL, for the caller's stream";
  EXPECT_FALSE(forgetting(First::caller, &FakeRuntime::forget_wait, 1)) << "the caller's stream, for NCCL";
  EXPECT_FALSE(forgetting(First::nccl, &FakeRuntime::forget_record, 0)) << "of the caller's stream";
  EXPECT_FALSE(forgetting(First::caller, &FakeRuntime::forget_record, 1)) << "of the collective";
}

// What still reads a buffer that a collective overwrites comes first.
bool old_values_read(FakeRuntime& runtime, const std::function<void()>& forget) {
  const auto communicator = over_fake_nccl(runtime);
  const int size = communicator->size();
  const auto flat = runtime.to_device(values(2, kNumel * size));
  const auto shard = runtime.to_device(values(1));
  const auto copy = runtime.to_device(values(0));
  runtime.to_host(copy);
  runtime.copy(copy.data_ptr(), shard.const_data_ptr(), kNumel * 4, runtime.current_stream(0));
  forget();
  const auto work = communicator->reduce_scatter(flat, shard);
  while (!work->done()) std::this_thread::yield();  // NCCL's stream alone
  work->wait();
  return on_all_ranks(
      at::equal(runtime.to_host(copy), values(1)) && at::equal(runtime.to_host(shard), values(2 * size)));
}

TEST(NcclOrder, OverwritesOnlyWhatHasBeenRead) {
  FakeRuntime runtime;
  EXPECT_TRUE(old_values_read(runtime, [] {}));
  FakeRuntime without_wait;
  EXPECT_FALSE(old_values_read(without_wait, [&] { without_wait.forget_wait(0); }));
}

// The input goes out of scope, and the next launch looks whether it may be freed.
bool held(FakeRuntime& runtime, bool forget) {
  const auto communicator = over_fake_nccl(runtime);
  const int size = communicator->size();
  const auto shard = runtime.to_device(values(0));
  const auto other = runtime.to_device(values(1));
  runtime.hold_stream(kNccl);
  std::shared_ptr<Work> work;
  {
    const auto flat = runtime.to_device(values(2, kNumel * size));
    work = communicator->reduce_scatter(flat, shard);
  }
  if (forget) runtime.forget_query(0);
  communicator->all_reduce(other);
  while (forget && !runtime.has_forgotten()) std::this_thread::yield();
  work->wait();
  const bool right = at::equal(runtime.to_host(shard), values(2 * size));
  runtime.hold_stream(-1);
  return on_all_ranks(right);
}

TEST(NcclOrder, TensorsAreHeldUntilTheDeviceHasDoneWithThem) {
  FakeRuntime runtime;
  EXPECT_TRUE(held(runtime, false));
  FakeRuntime hasty;
  EXPECT_FALSE(held(hasty, true));
}

TEST(NcclOrder, TheHostDoesNotWaitForADeviceTensor) {
  FakeRuntime runtime;
  const auto communicator = over_fake_nccl(runtime);
  runtime.hold_stream(kCurrent);
  bool ran = false;
  const auto tensor = runtime.empty(kNumel, at::kFloat, 0);
  runtime.enqueue(runtime.current_stream(0), [&ran] { return ran = true; });
  const auto work = communicator->all_reduce(tensor);
  work->wait();
  EXPECT_FALSE(ran);
  EXPECT_FALSE(work->done());
  runtime.hold_stream(-1);
  runtime.to_host(tensor);
  EXPECT_TRUE(work->done());
  EXPECT_EQ(communicator->failure(), "");
}

TEST(NcclOrder, ABarrierWaitsOnTheHostForAllBeforeIt) {
  FakeRuntime runtime;
  const auto communicator = over_fake_nccl(runtime);
  const auto tensor = runtime.to_device(values(1));
  const auto work = communicator->all_reduce(tensor);
  communicator->barrier()->wait();
  EXPECT_TRUE(work->done());
}

TEST(NcclOrder, WorksInPlaceWhereNcclCan) {
  FakeRuntime runtime;
  const auto communicator = over_fake_nccl(runtime);
  const auto flat = runtime.to_device(values(1, kNumel * communicator->size()));
  auto& fake = FakeNccl::instance();
  communicator->all_gather(flat)->wait();
  communicator->all_reduce(flat)->wait();
  communicator->broadcast(flat, 0)->wait();
  communicator->reduce_scatter(flat, flat.narrow(0, kNumel * communicator->rank(), kNumel))->wait();
  EXPECT_EQ(fake.in_place, 4);
  EXPECT_EQ(fake.out_of_place, 0);
  communicator->reduce_scatter(flat, runtime.empty(kNumel, at::kFloat, 0))->wait();
  EXPECT_EQ(fake.out_of_place, 1);
  communicator->barrier()->wait();
}

TEST(NcclEvents, AreUsedAgain) {
  FakeRuntime runtime;
  const auto communicator = over_fake_nccl(runtime);
  const auto tensor = runtime.to_device(values(1));
  const auto one = [&] {
    communicator->all_reduce(tensor)->wait();
    communicator->barrier()->wait();  // so that the next launch finds them ended
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  one();
  const int events = runtime.live_events();
  for (int i = 0; i < 5; ++i) one();
  EXPECT_EQ(runtime.live_events(), events);
}

// A tensor of NCCL's memory whose last user is still in a stream when it goes out of scope.
bool freed_late(FakeRuntime& runtime, const std::function<void()>& forget) {
  const auto communicator = over_fake_nccl(runtime);
  runtime.hold_stream(kCurrent);
  const auto copy = runtime.empty(kNumel, at::kFloat, 0);
  {
    const auto tensor = communicator->allocate(kNumel, at::kFloat, at::Device(at::kCUDA, 0));
    EXPECT_EQ(FakeNccl::instance().live_windows, 1);
    tensor.fill_(5);
    runtime.copy(copy.data_ptr(), tensor.const_data_ptr(), kNumel * 4, runtime.current_stream(0));
    forget();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(60));  // the watching thread looks every 5
  const bool right = at::equal(runtime.to_host(copy), values(5));
  runtime.hold_stream(-1);
  return on_all_ranks(right);
}

TEST(NcclMemory, IsFreedWhenTheStreamHasDoneWithIt) {
  FakeRuntime runtime;
  EXPECT_TRUE(freed_late(runtime, [] {}));
  expect_nothing_left(runtime);
  FakeRuntime without_record;
  EXPECT_FALSE(freed_late(without_record, [&] { without_record.forget_record(0); }));
  FakeRuntime without_query;
  EXPECT_FALSE(freed_late(without_query, [&] { without_query.forget_query(0); }));
}

TEST(NcclMemory, MayOutliveTheCommunicator) {
  FakeRuntime runtime;
  for (const bool abort : {false, true}) {
    auto communicator = over_fake_nccl(runtime);
    auto tensor = communicator->allocate(kNumel, at::kFloat, at::Device(at::kCUDA, 0));
    testing::world_barrier();
    if (abort) communicator->abort("enough");
    communicator.reset();
    EXPECT_EQ(FakeNccl::instance().live_comms, 0);
    EXPECT_EQ(FakeNccl::instance().aborts, abort ? 1 : 0);
    EXPECT_EQ(FakeNccl::instance().destroys, abort ? 0 : 1);
    EXPECT_EQ(FakeNccl::instance().live_windows, abort ? 1 : 0) << "an abort takes the windows with it";
    FakeNccl::instance().live_windows = 0;
    tensor.fill_(1);
    EXPECT_EQ(FakeNccl::instance().live_allocations, 1);
    tensor.reset();
    expect_nothing_left(runtime);
    testing::forget_world();
  }
}

// One rank that cannot have windows: all take ordinary memory, and collectives work with it.
TEST(NcclMemory, IsOrdinaryOnAllRanksIfOneCannotRegisterIt) {
  for (const auto spoil : {+[](testing::NcclScript& script) { script.mem_alloc_fails = true; },
           +[](testing::NcclScript& script) { script.windows_fail = true; },
           +[](testing::NcclScript& script) { script.windows_are_null = true; }}) {
    FakeRuntime runtime;
    {
      const auto communicator = over_fake_nccl(runtime);
      auto& fake = FakeNccl::instance();
      if (communicator->rank() == communicator->size() - 1) spoil(fake.script);
      for (int i = 0; i < 2; ++i) {
        const auto tensor = communicator->allocate(kNumel, at::kFloat, at::Device(at::kCUDA, 0));
        EXPECT_EQ(fake.live_allocations, 0);
        EXPECT_EQ(fake.live_windows, 0);
        tensor.fill_(1);
        communicator->all_reduce(tensor)->wait();
        EXPECT_TRUE(at::equal(runtime.to_host(tensor), values(communicator->size())));
      }
    }
    expect_nothing_left(runtime);
  }
}

}  // namespace
}  // namespace zerosched
