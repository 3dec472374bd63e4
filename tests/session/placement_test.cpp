// Which device and which communicator a session takes.
#include "session/placement.h"
#include "comm/errors.h"
#include "fakes/fake_runtime.h"
#include "support/gather.h"
#include "support/world.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace zerosched {
namespace {

using testing::FakeRuntime;

// "mpi on cuda:1", or the error.
std::string placement(const SessionOptions& options, FakeRuntime& runtime) {
  const auto root = testing::world();
  std::shared_ptr<Communicator> nccl;
  try {
    const auto placed = detail::place_session(
        root, options, runtime, [&](at::Device) { return nccl = testing::world()->duplicate(); });
    return std::string(placed.communicator == root   ? "root"
                       : placed.communicator == nccl ? "nccl"
                                                     : "?") +
           " on " + placed.device.str();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
}

int rank() { return testing::world_rank(); }
bool alone() { return testing::world_size() == 1; }
std::string own(int devices) { return "cuda:" + std::to_string(rank() % devices); }

TEST(SessionPlacement, WithoutGpusIsOnTheCpu) {
  FakeRuntime none(0);
  EXPECT_EQ(placement(SessionOptions(), none), "root on cpu");
  EXPECT_CONTAINS(placement(SessionOptions().device(at::kCUDA), none), "rank 0: session: the device is cuda");
  EXPECT_CONTAINS(placement(SessionOptions().backend("nccl"), none), none.why_no_device());
}

TEST(SessionPlacement, AGpuPerRankMeansNccl) {
  FakeRuntime four(4);
  EXPECT_EQ(placement(SessionOptions(), four), (alone() ? "root on " : "nccl on ") + own(4));
  EXPECT_EQ(
      placement(SessionOptions().device(at::kCUDA), four), (alone() ? "root on " : "nccl on ") + own(4));
  EXPECT_EQ(placement(SessionOptions().backend("nccl"), four), "nccl on " + own(4));
  EXPECT_EQ(placement(SessionOptions().backend("mpi"), four), "root on " + own(4));
  EXPECT_EQ(placement(SessionOptions().backend("self"), four), "root on " + own(4));
  EXPECT_EQ(placement(SessionOptions().device(at::kCPU), four), "root on cpu");
}

TEST(SessionPlacement, AGpuThatEveryRankSeesAsItsFirstIsItsOwn) {
  FakeRuntime one(1);  // with an identity per process, as with CUDA_VISIBLE_DEVICES per rank
  EXPECT_EQ(placement(SessionOptions(), one), alone() ? "root on cuda:0" : "nccl on cuda:0");
}

TEST(SessionPlacement, RanksThatShareAGpuUseMpi) {
  FakeRuntime shared(1);
  shared.set_identity("the only one");
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(placement(SessionOptions(), shared), "root on cuda:0");
  const auto warning = ::testing::internal::GetCapturedStderr();
  if (rank() == 0 && !alone()) {
    EXPECT_CONTAINS(warning, "ranks 0 and 1 share cuda:0");
  } else {
    EXPECT_EQ(warning, "");
  }
}

TEST(SessionPlacement, RefusesWhatDoesNotFit) {
  FakeRuntime two(2);
  EXPECT_CONTAINS(placement(SessionOptions().device(at::Device(at::kCUDA, 2)), two), "cuda:0 to cuda:1");
  EXPECT_CONTAINS(placement(SessionOptions().backend("nccl").device(at::kCPU), two), "the device is the CPU");
  if (alone()) return;
  FakeRuntime some(rank() == 0 ? 1 : 0);
  EXPECT_CONTAINS(placement(SessionOptions(), some), "some ranks see a GPU and some do not");
}

}  // namespace
}  // namespace zerosched
