// What is different where MPI gives less than MPI_THREAD_MULTIPLE.
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/nccl_communicator.h>

#include <ATen/ops/full.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <string>
#include <thread>

namespace zerosched {
namespace {

TEST(InlineProgress, TheProgramReallyRunsBelowThreadMultiple) {
  int level = 0;
  MPI_Query_thread(&level);
  EXPECT_EQ(level, MPI_THREAD_FUNNELED);
}

TEST(InlineProgress, PollingDoneAdvances) {
  const auto world = testing::world();
  auto value = at::full({1000}, 1.0, at::kFloat);
  const auto work = world->all_reduce(value);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!work->done() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  ASSERT_TRUE(work->done());
  work->wait();
  EXPECT_EQ(value[7].item().toDouble(), world->size());
}

TEST(InlineProgress, NotesAreHeardInsideCalls) {
  const auto world = testing::world();
  testing::world_barrier();
  if (world->rank() == world->size() - 1) world->abort("out of memory");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (world->failure().empty() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_EQ(world->failure(), "out of memory");
}

TEST(InlineProgress, AnotherThreadMayLaunchButNotWait) {
  const auto world = testing::world();
  auto value = at::full({1}, 1.0, at::kFloat);
  std::shared_ptr<Work> work;
  std::string error;
  std::thread([&] {
    work = world->all_reduce(value);
    try {
      work->wait();
    } catch (const c10::Error& e) {
      error = e.what_without_backtrace();
    }
  }).join();
  EXPECT_NE(error.find("MPI_THREAD_MULTIPLE"), std::string::npos) << error;
  work->wait();
  EXPECT_EQ(value.item().toDouble(), world->size());
}

TEST(InlineProgress, NcclIsRefused) {
  // Its failures are looked for by a thread of the library's own, which could not call MPI.
  const auto world = testing::world();
  std::string error;
  try {
    nccl_communicator(world);
  } catch (const c10::Error& e) {
    error = e.what_without_backtrace();
  }
  EXPECT_NE(error.find(ZEROSCHED_TEST_NCCL ? "MPI_THREAD_MULTIPLE" : "ZEROSCHED_CUDA=ON"), std::string::npos)
      << error;
  auto value = at::full({1}, 1.0);
  world->all_reduce(value)->wait();
  EXPECT_EQ(value.item().toDouble(), world->size());
}

}  // namespace
}  // namespace zerosched
