// Making an NCCL communicator: which library and which device, and that all ranks get one or none does.
#include "comm/errors.h"
#include "comm/nccl/nccl_backend.h"
#include "fakes/fake_nccl.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/nccl_communicator.h>

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

namespace zerosched {
namespace {

using std::chrono::steady_clock;
using testing::common;
using testing::error_of;
using testing::FakeNccl;
using testing::FakeRuntime;

constexpr const char* kAlternative = "--comm mpi";

class NcclJoin : public ::testing::Test {
 protected:
  void SetUp() override { fake().reset(runtime_); }
  void TearDown() override {
    EXPECT_EQ(fake().misuse(), "");
    EXPECT_EQ(fake().live_comms, 0);
  }

  FakeNccl& fake() { return FakeNccl::instance(); }
  bool last() const { return testing::world_rank() == testing::world_size() - 1; }
  std::string last_rank() const { return "rank " + std::to_string(testing::world_size() - 1); }

  detail::NcclOptions options(double timeout_seconds = 20) {
    detail::NcclOptions options;
    options.timeout_seconds = timeout_seconds;
    options.watch_seconds = 0.01;
    options.api = &fake().api();
    options.runtime = &runtime_;
    return options;
  }

  // The error of all ranks, and that it came within `at_most_seconds`.
  std::string error(double at_most_seconds, const detail::NcclOptions& options,
      std::optional<at::Device> device = std::nullopt) {
    testing::world_barrier();
    const auto start = steady_clock::now();
    const auto world = testing::world();
    const auto text = error_of([&] { detail::make_nccl_communicator(*world, device, options); });
    EXPECT_LT(std::chrono::duration<double>(steady_clock::now() - start).count(), at_most_seconds);
    return common(text);
  }

  FakeRuntime& runtime_ = FakeRuntime::make_for_ever();
};

TEST_F(NcclJoin, GivesWhatTheBootstrapHas) {
  const auto world = testing::world();
  const auto communicator = detail::make_nccl_communicator(*world, std::nullopt, options());
  EXPECT_STREQ(communicator->backend(), "nccl");
  EXPECT_EQ(communicator->rank(), world->rank());
  EXPECT_EQ(communicator->size(), world->size());
  EXPECT_EQ(communicator->local_rank(), world->local_rank());
  EXPECT_EQ(world->traffic().all_reduce.calls, 0) << "the bootstrap stays the caller's";
}

TEST_F(NcclJoin, AnyCommunicatorOfOneRankWillDo) {
  const auto self = self_communicator();
  const auto communicator = detail::make_nccl_communicator(*self, std::nullopt, options());
  const auto value = runtime_.to_device(at::full({3}, 2.0, at::kFloat));
  communicator->all_reduce(value)->wait();
  EXPECT_EQ(runtime_.to_host(value)[1].item().toDouble(), 2);
  communicator->abort("enough");
  EXPECT_EQ(self->failure(), "");
  EXPECT_EQ(error_of([&] { communicator->barrier(); }), "enough");
}

TEST_F(NcclJoin, TakesTheDeviceOfTheLocalRank) {
  FakeRuntime four(4);
  fake().reset(four);
  auto with_four = options();
  with_four.runtime = &four;
  const auto world = testing::world();
  const auto communicator = detail::make_nccl_communicator(*world, std::nullopt, with_four);
  const int own = world->local_rank() % 4;
  const auto tensor = four.empty(1, at::kFloat, own);
  communicator->all_gather(four.empty(world->size(), at::kFloat, own));
  const auto text = error_of([&] { communicator->all_reduce(four.empty(1, at::kFloat, (own + 1) % 4)); });
  EXPECT_CONTAINS(text, "this communicator is on cuda:" + std::to_string(own));
  EXPECT_CONTAINS(
      error_of([&] { communicator->allocate(1, at::kFloat, at::Device(at::kCUDA, (own + 1) % 4)); }),
      "is on cuda:");
  communicator->barrier()->wait();
}

TEST_F(NcclJoin, RefusesRanksThatShareADevice) {
  if (testing::world_size() == 1) return;
  runtime_.set_identity("the only one");
  const auto text = error(5, options());
  EXPECT_CONTAINS(text, "ranks 0 and 1 share cuda:0");
  EXPECT_CONTAINS(text, kAlternative);
}

TEST_F(NcclJoin, RefusesWrongDevices) {
  EXPECT_CONTAINS(error(5, options(), at::Device(at::kCPU)), "must be a CUDA device");
  EXPECT_CONTAINS(error(5, options(), at::Device(at::kCUDA, 1)), "there are 1 GPUs");
  FakeRuntime none(0);
  auto without = options();
  without.runtime = &none;
  const auto text = error(5, without);
  EXPECT_CONTAINS(text, none.why_no_device());
  EXPECT_CONTAINS(text, kAlternative);
  EXPECT_CONTAINS(error(5, options(0)), "timeout");
}

TEST_F(NcclJoin, RefusesABootstrapThatCannotCarryMessages) {
  const auto world = testing::world();
  const auto nccl = detail::make_nccl_communicator(*world, std::nullopt, options());
  if (nccl->size() == 1) return;
  EXPECT_CONTAINS(common(error_of([&] { detail::make_nccl_communicator(*nccl, std::nullopt, options()); })),
      "a nccl communicator cannot bootstrap NCCL");
}

TEST_F(NcclJoin, ANcclThatIsTooOldOnOneRankIsNobodys) {
  if (last()) fake().script.version = 21210;
  const auto text = error(5, options());
  EXPECT_CONTAINS(text, last_rank() + ": nccl: NCCL 2.12.10 is too old; install NCCL 2.14.0 or newer");
  EXPECT_CONTAINS(text, kAlternative);
}

TEST_F(NcclJoin, AnUniqueIdThatFailsIsEveryones) {
  fake().script.unique_id_fails = testing::world_rank() == 0;
  EXPECT_CONTAINS(error(5, options()), "rank 0: nccl: ncclGetUniqueId failed: unhandled system error");
}

TEST_F(NcclJoin, AnInitThatFailsAtOnceOnOneRankIsEveryones) {
  fake().script.init_fails_at_once = last();
  const auto text = error(5, options());
  EXPECT_CONTAINS(text, last_rank() + ": nccl: ncclCommInitRankConfig failed: unhandled system error");
  EXPECT_CONTAINS(text, kAlternative);
  EXPECT_EQ(testing::world()->failure(), "") << "the bootstrap still works";
}

TEST_F(NcclJoin, AnInitThatFailsLaterOnOneRankIsEveryones) {
  fake().script.init_fails_later = last();
  EXPECT_CONTAINS(
      error(5, options()), "nccl: " + last_rank() + ": ncclCommInitRankConfig failed: remote process exited");
}

TEST_F(NcclJoin, AnInitThatNeverCompletesIsGivenUp) {
  fake().script.init_never_completes = last();
  const auto text = error(6, options(1));
  EXPECT_CONTAINS(text, "the ranks did not connect within 1 s");
  EXPECT_CONTAINS(text, "NCCL_SOCKET_IFNAME");
}

// NCCL_COMM_BLOCKING=0 in the environment overrules what the library asks for.
TEST_F(NcclJoin, WorksWithCallsThatAreInProgressWhenTheyReturn) {
  fake().script.calls_are_in_progress = true;
  const auto world = testing::world();
  const auto first = detail::make_nccl_communicator(*world, std::nullopt, options());
  const auto second = first->duplicate();
  for (const auto& communicator : {first, second}) {
    const auto tensor = communicator->allocate(3, at::kFloat, at::Device(at::kCUDA, 0));
    tensor.fill_(1);
    communicator->all_reduce(tensor)->wait();
    EXPECT_EQ(runtime_.to_host(tensor)[2].item().toDouble(), world->size());
  }
}

TEST_F(NcclJoin, DuplicatesBySplittingWhereNcclCan) {
  const auto world = testing::world();
  const auto old_api = fake().old_api();
  for (const bool splits : {true, false}) {
    auto with = options();
    with.api = splits || !last() ? &fake().api() : &old_api;  // one rank that cannot is enough
    const auto first = detail::make_nccl_communicator(*world, std::nullopt, with);
    const auto before = fake().splits.load();
    const auto second = first->duplicate();
    const auto third = second->duplicate();
    EXPECT_EQ(fake().splits - before, splits ? 2 : 0);
    for (const auto& communicator : {third, first, second}) {
      const auto value = runtime_.to_device(at::full({3}, 1.0, at::kFloat));
      communicator->all_reduce(value)->wait();
      EXPECT_EQ(runtime_.to_host(value)[1].item().toDouble(), world->size());
    }
  }
}

// The thread that is left in the call has the parent's communicator, until that is aborted.
TEST_F(NcclJoin, ASplitThatNeverCompletesIsGivenUpWithItsParent) {
  const auto world = testing::world();
  auto parent = detail::make_nccl_communicator(*world, std::nullopt, options(1));
  testing::world_barrier();
  fake().script.split_never_completes = true;
  const auto start = steady_clock::now();
  const auto text = error_of([&] { parent->duplicate(); });
  EXPECT_CONTAINS(text, "the ranks did not connect within 1 s");
  EXPECT_LT(std::chrono::duration<double>(steady_clock::now() - start).count(), 6);
  EXPECT_CONTAINS(parent->failure(), "the ranks did not connect within 1 s");
  EXPECT_EQ(world->failure(), "");
  parent.reset();
  while (runtime_.live_streams() > 1 && std::chrono::steady_clock::now() - start < std::chrono::seconds(15)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_EQ(fake().aborts, 1);
}

TEST_F(NcclJoin, ALibraryThatIsMissingSaysWhatToInstall) {
  const auto text = error_of([] { detail::load_nccl({"libnccl-of-nobody.so.2", "libnccl-either.so"}); });
  EXPECT_CONTAINS(text, "libnccl-of-nobody.so.2");
  EXPECT_CONTAINS(text, "libnccl-either.so");
  EXPECT_CONTAINS(text, "install it");
  EXPECT_CONTAINS(text, kAlternative);
  // Some library that is not NCCL.
  EXPECT_CONTAINS(error_of([] { detail::load_nccl({"libm.so.6"}); }), "has no ncclGetVersion");
}

TEST_F(NcclJoin, ReadsVersions) {
  EXPECT_EQ(detail::nccl_version_text(22809), "2.28.9");
  EXPECT_EQ(detail::nccl_version_text(21400), "2.14.0");
  EXPECT_EQ(detail::nccl_version_text(2804), "2.8.4");
}

// Of the real library, on a machine without GPUs; comm_gpu_conformance_test is for the others.
TEST_F(NcclJoin, WithoutAGpuTheErrorIsSoonAndSaysWhatToDo) {
  if (device::cuda().device_count() > 0) return;
  testing::world_barrier();
  const auto world = testing::world();
  const auto start = steady_clock::now();
  const auto text = common(error_of([&] { nccl_communicator(world); }));
  EXPECT_LT(std::chrono::duration<double>(steady_clock::now() - start).count(), 0.9);
  EXPECT_CONTAINS(text, "nccl: CUDA finds no GPU");
  EXPECT_CONTAINS(text, kAlternative);
  world->barrier()->wait();
  EXPECT_EQ(world->failure(), "");
}

TEST_F(NcclJoin, TheRealLibraryLoadsAndRefusesADeviceThatIsNotThere) {
  if (device::cuda().device_count() > 0) return;
  auto real = options();
  try {
    real.api = &detail::nccl_api();
  } catch (const c10::Error& error) {
    GTEST_SKIP() << error.what_without_backtrace();
  }
  int version = 0;
  EXPECT_EQ(real.api->get_version(&version), ncclSuccess);
  EXPECT_GE(version, detail::kOldestNcclVersion);
  const auto text = error(5, real);
  EXPECT_CONTAINS(text, "ncclCommInitRankConfig failed");
  EXPECT_CONTAINS(text, kAlternative);
}

}  // namespace
}  // namespace zerosched
