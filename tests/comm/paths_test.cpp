// The ways that tensors take between ranks: messages, or memory that ranks of a host share, and both between hosts.
#include "comm/errors.h"
#include "comm/mpi/mpi_backend.h"
#include "support/gather.h"
#include "support/world.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace zerosched::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

/// On pretended hosts: of all ranks, of half of them each, or of one each.
struct Path {
  const char* name;
  int ranks_per_host;
  bool windows;
};

std::shared_ptr<Communicator> make(const Path& path, double timeout_seconds) {
  detail::MpiOptions options;
  options.timeout_seconds = timeout_seconds;
  options.shares_memory = path.windows;
  for (int rank = 0; rank < world_size(); ++rank) options.host_of_rank.push_back(rank / path.ranks_per_host);
  return detail::make_mpi_communicator(MPI_COMM_WORLD, options);
}

class Paths : public ::testing::TestWithParam<Path> {};

constexpr int64_t kSlice = 300'000;  // many messages, and several polls of a sum

at::Tensor filled(Communicator& communicator, double value) {
  return communicator.allocate(kSlice * communicator.size(), at::kFloat, at::kCPU).fill_(value);
}

// Who is late differs, what comes out does not.
TEST_P(Paths, BitsDoNotDependOnWhoIsLate) {
  const auto communicator = make(GetParam(), 20);
  const int ranks = communicator->size();
  const auto values = at::randn({kSlice * ranks}).mul_(communicator->rank() + 1);
  const auto flat = filled(*communicator, 0);
  const auto y = filled(*communicator, 0);
  at::Tensor first;
  for (int late = 0; late <= ranks; ++late) {
    if (late == communicator->rank()) std::this_thread::sleep_for(milliseconds(30));
    flat.copy_(values);
    const auto shard = at::full({kSlice}, 0.0, at::kFloat);
    const auto sum = communicator->reduce_scatter(flat, shard, {"gradients", late});
    sum->wait();
    y.narrow(0, communicator->rank() * kSlice, kSlice).copy_(shard);
    communicator->all_gather(y, {"parameters", late})->wait();
    if (late == 0) first = y.clone();
    EXPECT_TRUE(at::equal(y, first)) << "rank " << late << " was late";
  }
}

// A tensor is its owner's again once wait() has returned: others may be behind, and still read the old values.
TEST_P(Paths, TensorsMayBeWrittenAfterTheWait) {
  const auto communicator = make(GetParam(), 20);
  const int ranks = communicator->size();
  const auto flat = filled(*communicator, 0);
  const auto y = filled(*communicator, 0);
  const auto shard = at::full({kSlice}, 0.0, at::kFloat);
  for (int round = 0; round < 40; ++round) {
    flat.fill_(round + communicator->rank());
    communicator->reduce_scatter(flat, shard, {"gradients", round})->wait();
    flat.fill_(-1);
    EXPECT_TRUE(at::equal(shard, at::full_like(shard, ranks * round + ranks * (ranks - 1) / 2))) << round;
    const auto own = y.narrow(0, communicator->rank() * kSlice, kSlice);
    own.fill_(round + communicator->rank());
    communicator->all_gather(y, {"parameters", round})->wait();
    const auto all = y.clone();
    own.fill_(-1);
    for (int rank = 0; rank < ranks; ++rank) {
      const auto slice = all.narrow(0, rank * kSlice, kSlice);
      EXPECT_TRUE(at::equal(slice, at::full_like(slice, round + rank))) << round;
    }
  }
}

TEST_P(Paths, ARankThatDoesNotComeIsNamed) {
  for (const bool gathers : {false, true}) {
    const auto communicator = make(GetParam(), 1);
    const auto flat = filled(*communicator, 1);
    const int absent = communicator->size() - 1;
    const auto start = steady_clock::now();
    std::string error;
    if (communicator->rank() == absent) {
      std::this_thread::sleep_for(std::chrono::seconds(3));
      error = communicator->failure();
    } else {
      error = error_of([&] {
        const auto shard = at::full({kSlice}, 0.0, at::kFloat);
        (gathers ? communicator->all_gather(flat, {"parameters"})
                 : communicator->reduce_scatter(flat, shard, {"gradients"}))
            ->wait();
      });
      EXPECT_LT(seconds_since(start), 2.5);
    }
    const std::string what = gathers ? "all_gather #" : "reduce_scatter #";
    EXPECT_CONTAINS(common(error), "mpi: gave up " + what);
    EXPECT_CONTAINS(error, "after 1 s; rank " + std::to_string(absent) + " has not arrived");
  }
}

// A rank of which nobody knows in what the others are.
TEST_P(Paths, AnAbortReachesRanksThatWaitForData) {
  const auto communicator = make(GetParam(), 20);
  const auto flat = filled(*communicator, 1);
  const auto shard = at::full({kSlice}, 0.0, at::kFloat);
  const auto start = steady_clock::now();
  if (communicator->rank() == 0) {
    std::this_thread::sleep_for(milliseconds(200));
    communicator->abort("rank 0: the disk is full");
  } else {
    const auto error = error_of([&] { communicator->reduce_scatter(flat, shard, {"gradients"})->wait(); });
    EXPECT_EQ(error, "rank 0: the disk is full");
  }
  EXPECT_LT(seconds_since(start), 5);
}

TEST_P(Paths, TensorsThatOnlySomeRanksAllocatedAreAnError) {
  if (!GetParam().windows || GetParam().ranks_per_host == 1) return;
  const auto communicator = make(GetParam(), 5);
  const auto window = filled(*communicator, 1);
  const auto own = at::full({kSlice * communicator->size()}, 1.0, at::kFloat);
  const auto error = common(
      error_of([&] { communicator->all_gather(communicator->rank() == 0 ? window : own, {"p"})->wait(); }));
  EXPECT_CONTAINS(error, "in memory that ranks of a host share");
}

/// Of "name: 123 kB" in /proc/self/status.
int64_t kilobytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != name + ":") continue;
    int64_t value = 0;
    status >> value;
    return value;
  }
  return -1;
}

// kB of MPI's own that come and go, as with communicators of earlier tests that are freed in the background.
constexpr int64_t kOfMpi = 1024;

TEST_P(Paths, MemoryGoesWithItsTensors) {
  const auto communicator = make(GetParam(), 20);
  const int64_t before = kilobytes("RssShmem");
  {
    const auto flat = filled(*communicator, 1);
    const auto half = flat.narrow(0, 0, kSlice);
    communicator->all_gather(flat)->wait();
    communicator->barrier()->wait();
    const int64_t held = kilobytes("RssShmem") - before;
    const int64_t own = communicator->size() * kSlice * 4 / 1024;
    const bool shares = GetParam().windows && GetParam().ranks_per_host > 1;
    EXPECT_GT(held, (shares ? own : 0) - kOfMpi);
    // Its own part, and of others' what it reads.
    EXPECT_LT(held, (shares ? 2 * own + 4096 : 0) + kOfMpi);
  }
  communicator->barrier()->wait();
  EXPECT_LT(kilobytes("RssShmem") - before, kOfMpi);
}

INSTANTIATE_TEST_SUITE_P(All, Paths,
    ::testing::Values(Path{"Flat", 1, true}, Path{"OneHost", 4, true}, Path{"OneHostByMessages", 4, false},
        Path{"TwoLevels", 2, true}, Path{"TwoLevelsByMessages", 2, false}),
    [](const ::testing::TestParamInfo<Path>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace zerosched::testing
