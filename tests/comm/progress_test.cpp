// What the background thread of the MPI communicator does and costs.
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/mpi_communicator.h>

#include <ATen/Context.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <chrono>
#include <ctime>
#include <thread>

namespace zerosched {
namespace {

double process_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

TEST(Progress, CollectivesEndWithoutFurtherCalls) {
  const auto world = testing::world();
  auto flat = at::full({world->size() * 1000000}, 1.0, at::kFloat);
  auto shard = at::zeros({1000000}, at::kFloat);
  auto gathered = at::full({world->size() * 1000000}, 1.0, at::kFloat);
  const auto scatter = world->reduce_scatter(flat, shard);
  const auto gather = world->all_gather(gathered);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(15);
  while (!(scatter->done() && gather->done()) && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(scatter->done());
  EXPECT_TRUE(gather->done());
  EXPECT_EQ(shard[999999].item().toDouble(), world->size());
  // The tensors are free again once the work is done.
  EXPECT_EQ(flat.use_count(), 1u);
  testing::world_barrier();
}

// Whichever thread makes it: this one, which flushes denormal numbers, or the background's.
TEST(Progress, SumsKeepDenormalNumbers) {
  const auto world = testing::world();
  constexpr float kTiny = 1e-40F;
  for (const bool waits : {true, false}) {
    const auto flat = at::full({world->size() * 1000}, kTiny, at::kFloat);
    const auto shard = at::zeros({1000}, at::kFloat);
    at::globalContext().setFlushDenormal(true);
    const auto work = world->reduce_scatter(flat, shard);
    while (!waits && !work->done()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    work->wait();
    at::globalContext().setFlushDenormal(false);
    EXPECT_EQ(shard[0].item<float>(), static_cast<float>(world->size()) * kTiny);
  }
  testing::world_barrier();
}

TEST(Progress, IdleCostsNoProcessorTime) {
  const auto world = testing::world();
  world->barrier()->wait();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const double before = process_cpu_seconds();
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_LT(process_cpu_seconds() - before, 0.03);
}

TEST(Progress, CommunicatorsMayBeDestroyedWithCollectivesInFlight) {
  const auto world = testing::world();
  auto flat = at::full({world->size() * 300000}, 1.0, at::kFloat);
  auto shard = at::zeros({300000}, at::kFloat);
  std::shared_ptr<Work> work;
  {
    const auto other = world->duplicate();
    work = other->reduce_scatter(flat, shard);
  }
  work->wait();
  EXPECT_EQ(shard[0].item().toDouble(), world->size());
}

TEST(Progress, SubsetsOfRanksWork) {
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, testing::world_rank() % 2, testing::world_rank(), &half);
  {
    const auto communicator = mpi_communicator(half, 20);
    // The caller's communicator stays the caller's.
    MPI_Comm_free(&half);
    auto value = at::full({1}, 1.0);
    communicator->all_reduce(value)->wait();
    EXPECT_EQ(value.item().toDouble(), communicator->size());
  }
}

TEST(Progress, LocalRanksAreThoseOfTheNode) {
  EXPECT_EQ(testing::world()->local_rank(), testing::world_rank());  // the tests run on one node
}

}  // namespace
}  // namespace zerosched
