// One rank's failure becomes the error of all ranks, with one message.
#include "comm/agree.h"
#include "comm/errors.h"
#include "comm/failure/whereabouts.h"
#include "comm/member.h"
#include "comm/mpi/mpi_backend.h"
#include "support/gather.h"

#include <zerosched/communicator.h>
#include <zerosched/mpi_communicator.h>

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

namespace {

std::atomic<int> freed{0};  // communicators

}  // namespace

int MPI_Comm_free(MPI_Comm* comm) {
  ++freed;
  return PMPI_Comm_free(comm);
}

namespace zerosched {
namespace {

using std::chrono::steady_clock;
using testing::common;
using testing::error_of;
using testing::seconds_since;
using testing::wait_for_failure;
using testing::wait_until;

std::shared_ptr<Communicator> make(double timeout_seconds) {
  detail::MpiOptions options;
  options.timeout_seconds = timeout_seconds;
  return detail::make_mpi_communicator(MPI_COMM_WORLD, options);
}

// One collective; and no rank gives up before it has ended on all.
void start_together(Communicator& communicator, const CollectiveLabel& label = {}) {
  communicator.barrier(label)->wait();
  testing::world_barrier();
}

struct Mismatch {
  const char* name;
  std::function<void(Communicator&)> of_rank_0, of_others;
  const char* expected_0;
  const char* expected_1;
};

class Mismatched : public ::testing::TestWithParam<Mismatch> {};

TEST_P(Mismatched, CollectivesAreQuotedOnEveryRank) {
  const auto communicator = make(15);
  start_together(*communicator, {"start"});
  const auto start = steady_clock::now();
  const auto error = common(error_of(
      [&] { (communicator->rank() == 0 ? GetParam().of_rank_0 : GetParam().of_others)(*communicator); }));
  EXPECT_CONTAINS(error, std::string("rank 0 is in ") + GetParam().expected_0);
  // Of the others the one is quoted that came first.
  EXPECT_CONTAINS(error, std::string(" in ") + GetParam().expected_1);
  EXPECT_CONTAINS(error, "same collectives in the same order");
  EXPECT_LT(seconds_since(start), 5);
  EXPECT_EQ(error_of([&] { communicator->barrier(); }), error);
}

std::vector<Mismatch> mismatches() {
  const auto reduce = [](int64_t numel, CollectiveLabel label, ReduceOp op = ReduceOp::sum) {
    return [=](Communicator& c) { c.all_reduce(at::zeros({numel}, at::kFloat), op, label)->wait(); };
  };
  const auto gather = [](int64_t slice, CollectiveLabel label) {
    return [=](Communicator& c) { c.all_gather(at::zeros({slice * c.size()}, at::kFloat), label)->wait(); };
  };
  const auto scatter = [](int64_t slice, CollectiveLabel label) {
    return [=](Communicator& c) {
      c.reduce_scatter(at::zeros({slice * c.size()}, at::kFloat), at::zeros({slice}, at::kFloat), label)
          ->wait();
    };
  };
  const auto broadcast = [](int root) {
    return [=](Communicator& c) { c.broadcast(at::zeros({100}, at::kFloat), root)->wait(); };
  };
  return {
      {"Kinds", reduce(1, {"zero_grad"}), gather(1000, {"parameters", 0, 5}), "all_reduce #1 'zero_grad', ",
          "all_gather #1 'parameters' (bucket 0, step 5)"},
      {"ReduceScatterAndAllGather", scatter(300000, {"gradients", 2, 5}),
          gather(300000, {"parameters", 2, 5}), "reduce_scatter #1 'gradients' (bucket 2, step 5)",
          "all_gather #1 'parameters' (bucket 2, step 5)"},
      {"Buckets", scatter(10, {"gradients", 2, 5}), scatter(10, {"gradients", 3, 5}),
          "reduce_scatter #1 'gradients' (bucket 2, step 5)",
          "reduce_scatter #1 'gradients' (bucket 3, step 5)"},
      {"SmallSizes", reduce(10, {"norm"}), reduce(20, {"norm"}), "all_reduce #1 'norm' of 40 bytes of Float",
          "all_reduce #1 'norm' of 80 bytes of Float"},
      {"LargeSizes", gather(100000, {"p"}), gather(200000, {"p"}), "all_gather #1 'p' of ",
          "all_gather #1 'p' of "},
      {"ReduceScatterSizes", scatter(100000, {"g"}), scatter(200000, {"g"}), "reduce_scatter #1 'g' of ",
          "reduce_scatter #1 'g' of "},
      {"Reductions", reduce(1, {"norm"}), reduce(1, {"norm"}, ReduceOp::max),
          "all_reduce #1 'norm' of 4 bytes of Float, sum", "all_reduce #1 'norm' of 4 bytes of Float, max"},
      {"Roots", broadcast(0), broadcast(1), "broadcast #1 of 400 bytes of Float, root 0",
          "broadcast #1 of 400 bytes of Float, root 1"},
      {"BarrierAndReduce", [](Communicator& c) { c.barrier({"save"})->wait(); }, reduce(3, {"norm"}),
          "barrier #1 'save'", "all_reduce #1 'norm'"},
  };
}

INSTANTIATE_TEST_SUITE_P(Pairs, Mismatched, ::testing::ValuesIn(mismatches()),
    [](const ::testing::TestParamInfo<Mismatch>& info) { return std::string(info.param.name); });

// Makes communicators over a parent of which rank `absent` comes when the others have given up; every rank's error.
std::vector<std::string> errors_without(int absent) {
  MPI_Comm parent = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &parent);
  const auto call = [&] { mpi_communicator(parent, 1); };
  const auto start = steady_clock::now();
  std::string error;
  if (testing::world_rank() != absent) error = error_of(call);
  EXPECT_LT(seconds_since(start), 4);
  testing::world_barrier();
  if (testing::world_rank() == absent) error = error_of(call);
  return testing::gather_texts(error);  // the parent is lost: requests are pending on it
}

TEST(Join, NamesTheRanksThatDoNotCome) {
  const int absent = testing::world_size() - 1;
  const std::string expected = "mpi: rank " + std::to_string(absent) +
                               " has not called mpi_communicator() after 1 s (it is stopped, dead or busy "
                               "before it); every rank of the parent communicator must call it";
  for (const auto& error : errors_without(absent)) EXPECT_EQ(error, expected);
}

TEST(Join, SaysThatRank0DoesNotCome) {
  for (const auto& error : errors_without(0)) {
    EXPECT_CONTAINS(error, "mpi: rank 0 has not called mpi_communicator() after 1 s");
  }
}

TEST(Join, WaitsForARankThatComesInTime) {
  MPI_Comm parent = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &parent);
  const int late = testing::world_size() % 2 == 0 ? testing::world_size() - 1 : 0;
  testing::world_barrier();
  // Later than the timeout, and before the others have found out who is missing.
  if (testing::world_rank() == late) std::this_thread::sleep_for(std::chrono::seconds(5));
  start_together(*mpi_communicator(parent, 4));
  MPI_Comm_free(&parent);
}

TEST(Timeout, NamesTheRankThatDoesNotCome) {
  const auto communicator = make(1);
  start_together(*communicator, {"start"});
  const int absent = communicator->size() - 1;
  const auto start = steady_clock::now();
  std::string error;
  if (communicator->rank() == absent) {
    // Computes, and finds out at its next call.
    std::this_thread::sleep_for(std::chrono::seconds(3));
    error = error_of([&] { communicator->barrier({"end"})->wait(); });
  } else {
    error = error_of([&] {
      communicator->all_reduce(at::zeros({1}), ReduceOp::sum, {"norm", -1, 7})->wait();
    });
    EXPECT_LT(seconds_since(start), 2.5);
    EXPECT_GT(seconds_since(start), 0.9);
  }
  EXPECT_EQ(
      common(error), "mpi: gave up all_reduce #1 'norm' (step 7) after 1 s; rank " + std::to_string(absent) +
                         " has not arrived (its last collective was barrier #0 'start'), but answers: it "
                         "is busy outside of the library. If that may take so long, set a longer "
                         "SessionOptions::timeout");
}

TEST(Timeout, NamesARankThatHasCalledNothing) {
  const auto communicator = make(1);
  std::string error;
  if (communicator->rank() == 0) {
    std::this_thread::sleep_for(std::chrono::seconds(2));
    error = communicator->failure();
  } else {
    auto shard = at::zeros({7});
    error = error_of([&] {
      communicator->reduce_scatter(at::zeros({7 * communicator->size()}), shard, {"gradients"})->wait();
    });
  }
  EXPECT_EQ(common(error),
      "mpi: gave up reduce_scatter #0 'gradients' after 1 s; rank 0 has not arrived (it has called "
      "no collective yet), but answers: it is busy outside of the library. If that may take so long, set a "
      "longer SessionOptions::timeout");
}

TEST(Timeout, IsSeenByARankThatOnlyPolls) {
  const auto communicator = make(0.5);
  testing::world_barrier();
  if (communicator->rank() != 0) {
    const auto work = communicator->barrier();
    const auto start = steady_clock::now();
    while (!work->done() && seconds_since(start) < 10)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_LT(seconds_since(start), 5);
    EXPECT_CONTAINS(error_of([&] { work->wait(); }), "rank 0 has not arrived");
  }
  testing::world_barrier();
  EXPECT_CONTAINS(communicator->failure(), "rank 0 has not arrived");
}

TEST(Timeout, SaysWhichFunctionABusyRankIsIn) {
  const auto communicator = make(1);
  start_together(*communicator);
  std::string error;
  if (communicator->rank() == 0) {
    const detail::InCall call("save_checkpoint()");
    std::this_thread::sleep_for(std::chrono::seconds(2));
    error = communicator->failure();
  } else {
    error = error_of([&] { communicator->barrier()->wait(); });
  }
  EXPECT_CONTAINS(common(error),
      "but answers: it is in save_checkpoint(). If that may take so long, set a longer "
      "SessionOptions::timeout");
}

TEST(Timeout, NamesBothOfTwoThatRanksComeToInDifferentOrders) {
  const auto communicator = make(1);
  auto generator = communicator->duplicate();
  auto critic = communicator->duplicate();
  detail::set_owner(*generator, "AdamW #1");
  detail::set_owner(*critic, "SGD #2");
  start_together(*communicator);
  const bool other_way = communicator->rank() == 1;
  const auto error = error_of([&] { (other_way ? critic : generator)->barrier({"step", -1, 4})->wait(); });
  EXPECT_CONTAINS(error, other_way ? "mpi: SGD #2: gave up barrier #0 'step' (step 4) after 1 s; "
                                   : "mpi: AdamW #1: gave up barrier #0 'step' (step 4) after 1 s; ");
  // Whose time was over a moment earlier has given up when it is asked.
  const std::string elsewhere =
      std::string("barrier #0 'step' (step 4) of ") + (other_way ? "AdamW #1" : "SGD #2");
  const bool waits = error.find("but answers: it waits in " + elsewhere) != std::string::npos;
  EXPECT_TRUE(waits || error.find("but answers: it gave up " + elsewhere) != std::string::npos) << error;
  EXPECT_CONTAINS(
      error, "Every rank must step its optimizers, and call what else is collective, in the same order");
  testing::world_barrier();
}

TEST(Departure, EndsWhatTheOthersGoOnToAtOnce) {
  auto communicator = make(20);
  start_together(*communicator);
  const int leaves = communicator->size() - 1;
  const auto start = steady_clock::now();
  std::string error;
  if (communicator->rank() == leaves) {
    communicator = nullptr;
  } else {
    error = error_of([&] {
      communicator->all_reduce(at::zeros({1}), ReduceOp::sum, {"loss", -1, 3})->wait();
    });
    EXPECT_LT(seconds_since(start), 5);
    EXPECT_EQ(error,
        "mpi: all_reduce #1 'loss' (step 3): rank " + std::to_string(leaves) +
            " has destroyed this communicator after 1 collectives; every rank must call the same ones");
  }
  testing::world_barrier();
}

TEST(Departure, IsKnownToWhoComesLater) {
  auto communicator = make(20);
  start_together(*communicator);
  if (communicator->rank() == 0) detail::leave(*communicator, "rank 0 has gone home");
  testing::world_barrier();
  const auto start = steady_clock::now();
  const auto error = error_of([&] { communicator->barrier({"end"})->wait(); });
  EXPECT_CONTAINS(error, "mpi: barrier");
  EXPECT_CONTAINS(error, "'end': rank 0 has gone home");
  EXPECT_LT(seconds_since(start), 5);
  testing::world_barrier();
}

TEST(Departure, LetsWhatWasBegunEnd) {
  auto communicator = make(20);
  start_together(*communicator);
  const auto flat = at::full({communicator->size() * 500000}, 1.0);
  const auto shard = at::zeros({500000});
  const auto work = communicator->reduce_scatter(flat, shard);
  communicator = nullptr;
  EXPECT_EQ(error_of([&] { work->wait(); }), "");
  EXPECT_EQ(shard[0].item().toDouble(), testing::world_size());
  testing::world_barrier();
}

// As where an exception ends the scope of an optimizer on all ranks, at a slightly different place on each.
TEST(Departure, IsNoFailureWhereNobodyWaits) {
  const auto communicator = make(20);
  auto duplicate = communicator->duplicate();
  start_together(*communicator);
  const auto flat = at::full({communicator->size() * 500000}, 1.0);
  const auto shard = at::zeros({500000});
  std::shared_ptr<Work> work;
  if (communicator->rank() == 0) work = duplicate->reduce_scatter(flat, shard);
  if (work != nullptr) std::this_thread::sleep_for(std::chrono::milliseconds(100));  // the others leave first
  detail::leave(*duplicate, "rank " + std::to_string(communicator->rank()) + " has caught an exception");
  if (work != nullptr) {
    EXPECT_CONTAINS(error_of([&] { work->wait(); }), "has caught an exception");
    EXPECT_GE(flat.use_count(), 2u);  // MPI may yet write it
  }
  duplicate = nullptr;
  testing::world_barrier();
  EXPECT_EQ(static_cast<detail::MpiCommunicator&>(*communicator).family_failure(), "");
  start_together(*communicator);
}

// As where all ranks catch one exception in the midst of backward, of which one had come further: it gives up what it had
// begun with the others too, who have left and do not wait.
TEST(Departure, InTheMidstOfCollectivesIsNoFailureEither) {
  const auto communicator = make(1);
  auto duplicate = communicator->duplicate();
  start_together(*communicator);
  const auto flat = at::full({communicator->size() * 4000000}, 1.0);
  const auto shard = at::zeros({4000000});
  const bool comes_further = communicator->rank() == 0;
  if (comes_further) std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the others leave first
  duplicate->reduce_scatter(flat, shard);
  if (comes_further) duplicate->reduce_scatter(flat, shard);
  detail::leave(*duplicate, "rank " + std::to_string(communicator->rank()) + " has caught an exception");
  duplicate = nullptr;
  std::this_thread::sleep_for(std::chrono::seconds(3));
  EXPECT_EQ(static_cast<detail::MpiCommunicator&>(*communicator).family_failure(), "");
  testing::world_barrier();
  start_together(*communicator);
}

// Who has left may wait for what it has begun, and is asked about it like any rank.
TEST(Departure, OfOneRankChangesNoVerdict) {
  const auto communicator = make(1);
  start_together(*communicator);
  const int absent = communicator->size() - 1;
  std::string error;
  if (communicator->rank() != absent) {
    const auto work = communicator->all_reduce(at::zeros({1}));
    if (communicator->rank() == 0) detail::leave(*communicator, "rank 0 has gone home");
    error = error_of([&] { work->wait(); });
  }
  testing::world_barrier();
  wait_for_failure(*communicator);
  if (communicator->rank() == absent) error = communicator->failure();
  EXPECT_CONTAINS(common(error), "rank " + std::to_string(absent) + " has not arrived");
}

TEST(Departure, HidesNoMismatch) {
  const auto communicator = make(20);
  start_together(*communicator);
  const auto start = steady_clock::now();
  std::string error;
  if (communicator->rank() == 0) {
    const auto work = communicator->reduce_scatter(at::zeros({communicator->size()}), at::zeros({1}));
    detail::leave(*communicator, "rank 0 has gone home");
    error = error_of([&] { work->wait(); });
  } else {
    error = error_of([&] { communicator->all_reduce(at::zeros({1}), ReduceOp::sum, {"eval()"})->wait(); });
  }
  EXPECT_CONTAINS(common(error), "mpi: rank 0 is in reduce_scatter #1");
  EXPECT_CONTAINS(error, "rank 1 in all_reduce #1 'eval()'");
  EXPECT_LT(seconds_since(start), 5);
}

TEST(Departure, OfAllRanksGivesTheCommunicatorBack) {
  auto communicator = make(20);
  start_together(*communicator);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // those of the tests before
  testing::world_barrier();
  const int before = freed;
  if (communicator->rank() != 0) communicator = nullptr;
  testing::world_barrier();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(freed, before);  // rank 0 could still send something
  testing::world_barrier();
  communicator = nullptr;
  const auto start = steady_clock::now();
  while (freed == before && seconds_since(start) < 5)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(freed, before + 1);
  testing::world_barrier();
}

TEST(Abort, ReachesRanksThatWait) {
  const auto communicator = make(20);
  start_together(*communicator);
  const auto start = steady_clock::now();
  std::string error;
  if (communicator->rank() == 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    communicator->abort("rank 1: cannot read shard 17");
    error = communicator->failure();
  } else {
    auto flat = at::zeros({communicator->size() * 100000});
    error = error_of([&] { communicator->all_gather(flat, {"parameters"})->wait(); });
    EXPECT_LT(seconds_since(start), 2);
  }
  EXPECT_EQ(common(error), "rank 1: cannot read shard 17");
}

TEST(Abort, ReachesRanksThatCompute) {
  const auto communicator = make(20);
  start_together(*communicator);
  if (communicator->rank() == 0) communicator->abort("rank 0: out of memory");
  // A rank that sits in its own work hears of it between two calls.
  const auto start = steady_clock::now();
  wait_for_failure(*communicator);
  EXPECT_LT(seconds_since(start), 2);
  EXPECT_EQ(common(error_of([&] { communicator->check(); })), "rank 0: out of memory");
}

TEST(Abort, LongMessagesArriveAsTheyAre) {
  const auto communicator = make(20);
  start_together(*communicator);
  if (communicator->rank() == 0) communicator->abort(std::string(100000, 'm'));
  wait_for_failure(*communicator);
  EXPECT_EQ(common(communicator->failure()).substr(0, 8), "mmmmmmmm");
}

TEST(Abort, DoesNotTouchOtherCommunicators) {
  const auto communicator = make(20);
  const auto other = communicator->duplicate();
  if (other->rank() == 0) other->abort("only this one");
  auto value = at::full({1}, 1.0);
  communicator->all_reduce(value)->wait();
  EXPECT_EQ(value.item().toDouble(), communicator->size());
  EXPECT_EQ(communicator->failure(), "");
  auto& mine = static_cast<detail::MpiCommunicator&>(*communicator);
  wait_until([&] { return !mine.family_failure().empty(); });
  EXPECT_EQ(mine.family_failure(), "only this one");
}

TEST(Abort, KeepsTheBuffersOfUnfinishedCollectives) {
  const auto communicator = make(20);
  start_together(*communicator);
  if (communicator->rank() == 0) {
    // Nobody else joins these.
    const auto flat = at::full({communicator->size() * 500000}, 1.0);
    const auto shard = at::zeros({500000});
    const auto work = communicator->reduce_scatter(flat, shard);
    communicator->abort("rank 0: gave up");
    EXPECT_EQ(error_of([&] { work->wait(); }), "rank 0: gave up");
    EXPECT_TRUE(work->done());
    EXPECT_GE(flat.use_count(), 2u);
    EXPECT_GE(shard.use_count(), 2u);
  }
  testing::world_barrier();
}

TEST(Duplicate, FailsWithTheNoteOfARankThatDoesNotCome) {
  const auto communicator = make(20);
  start_together(*communicator);
  std::string error;
  if (communicator->rank() == 0) {
    communicator->abort("rank 0: wrong options");
    error = communicator->failure();
  } else {
    error = error_of([&] { communicator->duplicate(); });
  }
  EXPECT_EQ(common(error), "rank 0: wrong options");
}

TEST(PatientBarrier, OutlastsTheTimeoutWhileAllRanksLive) {
  const auto communicator = make(0.4);
  auto& mine = static_cast<detail::MpiCommunicator&>(*communicator);
  if (communicator->rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2000));
  EXPECT_EQ(common(error_of([&] { mine.patient_barrier({"end"}); })), "");
  EXPECT_EQ(communicator->failure(), "");
}

TEST(MakeMpiCommunicator, RefusesWrongArguments) {
  EXPECT_CONTAINS(error_of([] { make(0); }), "timeout");
  EXPECT_CONTAINS(error_of([] { make(-1); }), "timeout");
  EXPECT_CONTAINS(error_of([] { make(std::numeric_limits<double>::infinity()); }), "timeout");
  EXPECT_CONTAINS(error_of([] { detail::make_mpi_communicator(MPI_COMM_NULL, {}); }), "MPI_COMM_NULL");
}

}  // namespace
}  // namespace zerosched
