// What goes wrong in NCCL or on one rank ends on all ranks, soon, with one message that says what and where.
#include "comm/errors.h"
#include "comm/member.h"
#include "comm/mpi/mpi_backend.h"
#include "comm/nccl/nccl_backend.h"
#include "fakes/fake_nccl.h"
#include "support/gather.h"
#include "support/world.h"

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace zerosched {
namespace {

using std::chrono::steady_clock;
using testing::common;
using testing::error_of;
using testing::FakeNccl;
using testing::FakeRuntime;
using testing::seconds_since;

class NcclFailure : public ::testing::Test {
 protected:
  void TearDown() override {
    communicator_.reset();
    testing::forget_world();
    EXPECT_EQ(fake().misuse(), "");
    EXPECT_EQ(fake().live_comms, 0);
    EXPECT_EQ(runtime_.live_events(), 0);
    EXPECT_EQ(runtime_.live_streams(), 1);
  }

  FakeNccl& fake() { return FakeNccl::instance(); }

  Communicator& make(double timeout_seconds) {
    fake().reset(runtime_);
    detail::NcclOptions options;
    options.timeout_seconds = timeout_seconds;
    options.watch_seconds = 0.02;
    options.api = &fake().api();
    options.runtime = &runtime_;
    communicator_ = detail::make_nccl_communicator(*testing::world(), std::nullopt, options);
    communicator_->barrier({"start"})->wait();
    testing::world_barrier();
    start_ = steady_clock::now();
    return *communicator_;
  }

  at::Tensor tensor(int64_t numel = 10) { return runtime_.to_device(at::full({numel}, 1.0, at::kFloat)); }

  // Waits until the communicator has failed; the message, which every later call throws as well.
  std::string failure(double at_most_seconds) {
    while (communicator_->failure().empty() && seconds_since(start_) < 15) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EXPECT_LT(seconds_since(start_), at_most_seconds);
    const auto message = communicator_->failure();
    const auto device_tensor = tensor();
    EXPECT_EQ(error_of([&] { communicator_->all_reduce(device_tensor); }), message);
    EXPECT_EQ(error_of([&] { communicator_->barrier(); }), message);
    EXPECT_EQ(error_of([&] { communicator_->duplicate(); }), message);
    EXPECT_EQ(error_of([&] { communicator_->allocate(1, at::kFloat, at::kCUDA); }), message);
    return common(message);
  }

  FakeRuntime& runtime_ = FakeRuntime::make_for_ever();
  std::shared_ptr<Communicator> communicator_;
  steady_clock::time_point start_;
};

TEST_F(NcclFailure, AnAsynchronousErrorOfOneRankIsEveryones) {
  auto& communicator = make(20);
  fake().script.collectives_hang = true;
  const auto in_flight = tensor();
  const auto work = communicator.all_reduce(in_flight, ReduceOp::sum, {"gradients", 3, 12});
  testing::world_barrier();  // a rank that has heard launches nothing
  if (communicator.rank() == 1) fake().script.async_error = true;
  EXPECT_EQ(failure(5),
      "nccl: rank 1: all_reduce #1 'gradients' (bucket 3, step 12): an asynchronous operation failed: remote "
      "process "
      "exited or there was a network error (the fake was told to fail); NCCL_DEBUG=INFO in the environment "
      "tells more");
  EXPECT_EQ(common(error_of([&] { work->wait(); })), communicator.failure());
  while (fake().aborts == 0 && seconds_since(start_) < 10) std::this_thread::yield();
  EXPECT_EQ(fake().aborts, 1) << "on every rank";
  while (!work->done() && seconds_since(start_) < 10) std::this_thread::yield();
  EXPECT_TRUE(work->done());
}

TEST_F(NcclFailure, ALaunchThatFailsOnOneRankIsEveryones) {
  auto& communicator = make(20);
  fake().script.collectives_fail = communicator.rank() == 0;
  const auto shard = tensor(7);
  const auto flat = tensor(7 * communicator.size());
  const auto error = error_of([&] { communicator.reduce_scatter(flat, shard, {"gradients", 0, 1})->wait(); });
  EXPECT_EQ(failure(5),
      "nccl: rank 0: reduce_scatter #1 'gradients' (bucket 0, step 1): ncclReduceScatter failed: unhandled "
      "system "
      "error (the fake was told to fail); NCCL_DEBUG=INFO in the environment tells more");
  EXPECT_TRUE(communicator.rank() != 0 || error == communicator.failure()) << error;
}

struct Mismatch {
  const char* name;
  std::function<void(Communicator&, const std::function<at::Tensor(int64_t)>&)> of_rank_0, of_others;
  const char* expected_0;
  const char* expected_1;
};

std::vector<Mismatch> mismatches() {
  using Make = std::function<at::Tensor(int64_t)>;
  const auto reduce = [](int64_t numel, CollectiveLabel label) {
    return [=](Communicator& c, const Make& make) { c.all_reduce(make(numel), ReduceOp::sum, label); };
  };
  const auto gather = [](int64_t slice, CollectiveLabel label) {
    return [=](Communicator& c, const Make& make) { c.all_gather(make(slice * c.size()), label); };
  };
  return {
      {"Kinds", reduce(1, {"zero_grad"}), gather(100, {"parameters", 0, 5}), "all_reduce #1 'zero_grad', ",
          "all_gather #1 'parameters' (bucket 0, step 5)"},
      {"Counts", reduce(10, {"norm"}), reduce(20, {"norm"}), "all_reduce #1 'norm' of 40 bytes of Float",
          "all_reduce #1 'norm' of 80 bytes of Float"},
      {"Buckets", gather(8, {"p", 2, 5}), gather(8, {"p", 3, 5}), "all_gather #1 'p' (bucket 2, step 5)",
          "all_gather #1 'p' (bucket 3, step 5)"},
  };
}

class NcclMismatch : public NcclFailure, public ::testing::WithParamInterface<Mismatch> {};

TEST_P(NcclMismatch, IsQuotedOnEveryRank) {
  auto& communicator = make(2);
  fake().script.collectives_hang =
      std::string(GetParam().name) == "Buckets";  // equal for NCCL, which would do it
  const auto make_tensor = [this](int64_t numel) { return tensor(numel); };
  (communicator.rank() == 0 ? GetParam().of_rank_0 : GetParam().of_others)(communicator, make_tensor);
  const auto message = failure(8);
  EXPECT_CONTAINS(message, std::string("nccl: rank 0 is in ") + GetParam().expected_0);
  EXPECT_CONTAINS(message, std::string("rank 1 in ") + GetParam().expected_1);
  EXPECT_CONTAINS(message, "same collectives in the same order");
}

INSTANTIATE_TEST_SUITE_P(Pairs, NcclMismatch, ::testing::ValuesIn(mismatches()),
    [](const ::testing::TestParamInfo<Mismatch>& info) { return std::string(info.param.name); });

TEST_F(NcclFailure, ATimeoutNamesTheRankThatDoesNotCome) {
  auto& communicator = make(2);
  const int absent = communicator.size() - 1;
  const auto waiting = tensor();
  if (communicator.rank() != absent) {
    // A barrier's wait() is the host's.
    communicator.all_reduce(waiting, ReduceOp::sum, {"norm", -1, 7});
    EXPECT_NE(error_of([&] { communicator.barrier({"end"})->wait(); }), "");
    EXPECT_GT(seconds_since(start_), 1.9);
  }
  EXPECT_EQ(
      failure(8), "nccl: gave up all_reduce #1 'norm' (step 7) after 2 s; rank " + std::to_string(absent) +
                      " has not arrived (its last collective was barrier #0 'start'), but answers: it is "
                      "busy outside of the library. If that may take so long, set a longer "
                      "SessionOptions::timeout");
}

TEST_F(NcclFailure, ARankThatHasLeftEndsWhatTheOthersGoOnToAtOnce) {
  auto& communicator = make(60);
  const int last = communicator.size() - 1;
  if (communicator.rank() == last) {
    detail::leave(communicator, "rank " + std::to_string(last) + " has gone home");
  } else {
    communicator.all_reduce(tensor(), ReduceOp::sum, {"norm", -1, 7});
  }
  EXPECT_EQ(
      failure(8), "nccl: all_reduce #1 'norm' (step 7): rank " + std::to_string(last) + " has gone home");
  EXPECT_LT(seconds_since(start_), 5);
}

TEST_F(NcclFailure, WhatRanksLeaveInTheMidstOfIsNoFailureOfTheJob) {
  auto& communicator = make(60);
  if (communicator.rank() == 0) communicator.all_reduce(tensor(), ReduceOp::sum, {"norm"});
  detail::leave(communicator, "rank " + std::to_string(communicator.rank()) + " has caught an exception");
  communicator_.reset();
  EXPECT_LT(seconds_since(start_), 10);
  testing::world_barrier();
  EXPECT_EQ(dynamic_cast<detail::MpiCommunicator&>(*testing::world()).family_failure(), "");
}

// An abort would end what all ranks have begun, too.
TEST_F(NcclFailure, WhatRanksLeaveInTheMidstOfLetsWhatIsBeforeItEnd) {
  auto& communicator = make(60);
  runtime_.hold_stream(1);  // NCCL's
  const auto value = tensor();
  const auto work = communicator.all_reduce(value);
  if (communicator.rank() == 0) communicator.all_reduce(tensor());
  detail::leave(communicator, "rank " + std::to_string(communicator.rank()) + " has caught an exception");
  work->wait();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  runtime_.hold_stream(-1);
  EXPECT_EQ(runtime_.to_host(value)[0].item().toDouble(), communicator.size());
  communicator_.reset();
  testing::world_barrier();
  EXPECT_EQ(dynamic_cast<detail::MpiCommunicator&>(*testing::world()).family_failure(), "");
}

TEST_F(NcclFailure, ALaunchAfterLeavingIsAnErrorOfThisRankAlone) {
  auto& communicator = make(60);
  detail::leave(communicator, "rank " + std::to_string(communicator.rank()) + " has gone home");
  const auto value = tensor();
  const auto error = error_of([&] { communicator.all_reduce(value, ReduceOp::sum, {"late"}); });
  EXPECT_EQ(error, "nccl: all_reduce 'late': rank " + std::to_string(communicator.rank()) + " has gone home");
  communicator_.reset();
  testing::world_barrier();
  EXPECT_EQ(dynamic_cast<detail::MpiCommunicator&>(*testing::world()).family_failure(), "");
}

TEST_F(NcclFailure, ATimeoutWithAllRanksInItSaysSo) {
  auto& communicator = make(2);
  fake().script.collectives_hang = true;
  communicator.all_reduce(tensor());
  EXPECT_EQ(failure(8),
      "nccl: gave up all_reduce #1 after 2 s; every rank is in it, so it needs a longer timeout or the "
      "network does not deliver");
}

TEST_F(NcclFailure, AnAbortReachesRanksThatWait) {
  auto& communicator = make(20);
  if (communicator.rank() == 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    communicator.abort("rank 1: cannot read shard 17");
  } else {
    EXPECT_EQ(error_of([&] { communicator.barrier()->wait(); }), "rank 1: cannot read shard 17");
  }
  EXPECT_EQ(failure(5), "rank 1: cannot read shard 17");
}

TEST_F(NcclFailure, LeavesDuplicatesAloneAndTellsTheFamily) {
  auto& communicator = make(20);
  const auto other = communicator.duplicate();
  testing::world_barrier();  // a rank that is still joining would hear of it there
  if (other->rank() == 0) other->abort("only this one");
  testing::wait_for_failure(*other);
  EXPECT_EQ(other->failure(), "only this one");
  const auto value = tensor();
  communicator.all_reduce(value)->wait();
  EXPECT_EQ(runtime_.to_host(value)[0].item().toDouble(), communicator.size());
  EXPECT_EQ(communicator.failure(), "");
  // The communicator that a session ends the job by.
  EXPECT_EQ(dynamic_cast<detail::MpiCommunicator&>(*testing::world()).family_failure(), "only this one");
}

TEST_F(NcclFailure, TheDestructorDoesNotWaitForRanksThatWillNotCome) {
  make(20);
  const int rank = communicator_->rank();
  auto value = tensor();
  if (rank == 0) {
    // The others never join this one.
    communicator_->all_reduce(value);
    value.reset();
    const auto start = steady_clock::now();
    EXPECT_THROW(
        {
          const auto unwound = std::move(communicator_);
          throw std::runtime_error("a broken model");
        },
        std::runtime_error);
    EXPECT_LT(seconds_since(start), 5);
    EXPECT_EQ(fake().live_comms, 1) << "left to the watching thread";
    testing::world()->abort("rank 0: a broken model");
  }
  testing::world_barrier();
  // The thread hears of it like any rank, though through the communicator that it still has.
  if (rank != 0) communicator_->abort("rank " + std::to_string(rank) + ": told to stop");
  while (fake().live_comms > 0 && seconds_since(start_) < 10)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_EQ(fake().live_comms, 0);
  while (runtime_.live_streams() > 1 + (rank == 0 ? 0 : 1) && seconds_since(start_) < 10)
    std::this_thread::yield();
}

// The host may be seconds ahead of the device, which is not a reason to leave anything to a thread.
TEST_F(NcclFailure, TheDestructorWaitsForADeviceThatIsBehind) {
  make(20);
  auto value = tensor();
  runtime_.hold_stream(1);  // NCCL's
  communicator_->all_reduce(value);
  std::thread device([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(2500));
    runtime_.hold_stream(-1);
  });
  const auto start = steady_clock::now();
  communicator_.reset();
  EXPECT_GT(seconds_since(start), 2.3);
  EXPECT_EQ(fake().live_comms, 0);
  EXPECT_EQ(fake().destroys, 1) << "and not aborted";
  device.join();
  EXPECT_EQ(runtime_.to_host(value)[0].item().toDouble(), testing::world_size());
}

TEST_F(NcclFailure, AFinalizeThatHangsEndsInAnAbort) {
  make(20);
  fake().script.finalize_never_completes = true;
  std::thread destroy([this] { communicator_.reset(); });  // gives it a second, then the thread has it
  destroy.join();
  while (fake().live_comms > 0 && seconds_since(start_) < 15)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(fake().aborts, 1);
  while (runtime_.live_streams() > 1 && seconds_since(start_) < 15) std::this_thread::yield();
}

}  // namespace
}  // namespace zerosched
