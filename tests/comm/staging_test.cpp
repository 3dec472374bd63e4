// CUDA tensors through pinned host memory: every access comes after what it needs, and each rule that sees to
// it is missed when it is forgotten.
#include "comm/mpi/mpi_backend.h"
#include "fakes/fake_runtime.h"
#include "support/gather.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

namespace zerosched {
namespace {

using testing::FakeRuntime;

std::shared_ptr<Communicator> make(FakeRuntime& runtime) {
  detail::MpiOptions options;
  options.timeout_seconds = 20;
  options.runtime = &runtime;
  return detail::make_mpi_communicator(MPI_COMM_WORLD, options);
}

constexpr int64_t kNumel = 1000;

at::Tensor values(double value) { return at::full({kNumel}, value, at::kFloat); }

// A driver lets the runtime go once it has seen the end.
void finish(const Work& work) {
  while (!work.done()) std::this_thread::yield();
}

constexpr int kToDevice = 2;  // the third stream: the copies back

// Writes, reduces out of place, and reads; whether the sum came out on all ranks.
bool sums_right(FakeRuntime& runtime) {
  const auto communicator = make(runtime);
  runtime.hold_stream(kToDevice);
  const int size = communicator->size();
  const auto flat = runtime.to_device(at::full({kNumel * size}, communicator->rank() + 1.0, at::kFloat));
  const auto shard = runtime.to_device(values(0));
  const auto work = communicator->reduce_scatter(flat, shard);
  work->wait();
  const bool right = at::equal(runtime.to_host(shard), values(size * (size + 1) / 2));
  runtime.hold_stream(-1);
  finish(*work);
  for (const auto& text : testing::gather_texts(right ? "right" : "wrong")) {
    if (text != "right") return false;
  }
  return true;
}

TEST(Staging, SumsWhatWasWritten) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    auto runtime = std::make_unique<FakeRuntime>(1, seed);
    EXPECT_TRUE(sums_right(*runtime)) << "seed " << seed;
    EXPECT_EQ(runtime->live_events(), 0);
    EXPECT_EQ(runtime->live_streams(), 1);
    EXPECT_EQ(runtime->live_allocations(), 0);
  }
}

// The waits and records of one collective, in the order of the rules in staging.cpp.
TEST(Staging, EveryWaitRecordAndQueryIsNeeded) {
  const auto forgetting = [](const std::function<void(FakeRuntime&)>& forget) {
    FakeRuntime runtime;
    forget(runtime);
    const bool right = sums_right(runtime);
    EXPECT_TRUE(runtime.has_forgotten());
    return right;
  };
  EXPECT_FALSE(forgetting([](auto& r) { r.forget_wait(0); }))
      << "copies to the host, for the caller's stream";
  EXPECT_FALSE(forgetting([](auto& r) { r.forget_wait(1); })) << "the caller's stream, for the copies back";
  EXPECT_FALSE(forgetting([](auto& r) { r.forget_record(0); })) << "of the caller's stream";
  EXPECT_FALSE(forgetting([](auto& r) { r.forget_record(1); })) << "of the copies to the host";
  EXPECT_FALSE(forgetting([](auto& r) { r.forget_record(2); })) << "of the copies back";
  EXPECT_FALSE(forgetting([](auto& r) { r.forget_query(0); })) << "MPI, for the copies to the host";
}

TEST(Staging, HoldsTensorsUntilTheyAreOnTheDevice) {
  FakeRuntime runtime;
  const auto communicator = make(runtime);
  const auto shard = runtime.to_device(values(0));
  std::shared_ptr<Work> work;
  {
    const auto flat = runtime.to_device(at::full({kNumel * communicator->size()}, 2.0, at::kFloat));
    work = communicator->reduce_scatter(flat, shard);
  }
  // Nobody waits for that one yet, and the next must not get its buffers before it is through.
  const auto other = runtime.to_device(values(1));
  communicator->all_reduce(other)->wait();
  communicator->barrier()->wait();
  const auto last = runtime.to_device(values(3));
  const auto last_work = communicator->all_reduce(last);
  last_work->wait();
  work->wait();
  EXPECT_TRUE(at::equal(runtime.to_host(last), values(3 * communicator->size())));
  EXPECT_TRUE(at::equal(runtime.to_host(other), values(communicator->size())));
  EXPECT_TRUE(at::equal(runtime.to_host(shard), values(2 * communicator->size())));
  finish(*last_work);
}

TEST(Staging, ReusesPinnedBuffers) {
  FakeRuntime runtime;
  const auto communicator = make(runtime);
  auto tensor = runtime.to_device(values(1));
  finish(*communicator->all_reduce(tensor));
  const int before = runtime.live_allocations();
  for (int i = 0; i < 5; ++i) finish(*communicator->all_reduce(tensor));
  EXPECT_EQ(runtime.live_allocations(), before);
}

TEST(Staging, SeveralRanksMayShareADevice) {
  FakeRuntime runtime;
  runtime.set_identity("one device for all");
  EXPECT_TRUE(sums_right(runtime));
}

TEST(Staging, WithoutADeviceSaysWhy) {
  FakeRuntime none(0);
  const auto communicator = make(none);
  std::string error;
  try {
    communicator->allocate(5, at::kFloat, at::kCUDA);
  } catch (const c10::Error& e) {
    error = e.what_without_backtrace();
  }
  EXPECT_NE(error.find(none.why_no_device()), std::string::npos) << error;
}

}  // namespace
}  // namespace zerosched
