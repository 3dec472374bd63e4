// What backward costs on a device that has done nothing yet: a host runs ahead of a GPU as far as it likes.
#include "engine/device_trainer.h"
#include "engine/passing_communicator.h"

#include <atomic>
#include <map>

namespace zerosched::testing {
namespace {

/// Counts reduce-scatters; with `blocking` they are HostBlockingWork.
class CountingCommunicator final : public PassingCommunicator {
 public:
  CountingCommunicator(std::shared_ptr<Communicator> inner, bool blocking)
      : PassingCommunicator(std::move(inner)), blocking_(blocking) {}
  std::shared_ptr<Communicator> duplicate() override { return nullptr; }
  int64_t launched_now() { return std::exchange(reduce_scatters_, 0); }

 private:
  std::shared_ptr<Work> launched(
      Collective kind, const CollectiveLabel&, std::shared_ptr<Work> work) override {
    if (kind != Collective::reduce_scatter) return work;
    ++reduce_scatters_;
    if (!blocking_) return work;
    return std::make_shared<HostBlockingWork>(std::move(work));
  }

  const bool blocking_;
  int64_t reduce_scatters_ = 0;
};

/// A model of `buckets` buckets with as many parameters each, every one of `numel` elements.
Job job_of(int64_t buckets, int64_t parameters, int64_t numel) {
  Job job;
  job.shapes.assign(static_cast<size_t>(buckets * parameters), {numel});
  job.bucket_bytes = parameters * numel * 4;
  job.uses_all = true;
  return job;
}

struct Seen {
  int64_t launched = 0;    ///< in backward, of the last step
  int64_t peak_bytes = 0;  ///< in the same, above what there was before
};

/// Backward of a host whose device does nothing before the step.
Seen train(FakeRuntime& runtime, const Job& job, bool blocking) {
  Seen seen;
  std::shared_ptr<CountingCommunicator> counting;
  DeviceTrainer trainer(runtime, Transport::nccl);
  trainer.backward_is_beside = true;  // one stream
  trainer.watch_seconds = 0.2;
  trainer.wrap = [&](std::shared_ptr<Communicator> made) {
    counting = std::make_shared<CountingCommunicator>(std::move(made), blocking);
    return counting;
  };
  int64_t before = 0;
  trainer.before_backward = [&] {
    counting->launched_now();
    runtime.hold_stream(kNccl);
    before = runtime.allocated_bytes();
    runtime.take_peak_bytes();
  };
  trainer.after_last_backward = [&] {
    seen = {counting->launched_now(), runtime.take_peak_bytes() - before};
    runtime.hold_stream(-1);
  };
  trainer.run(job);
  return seen;
}

TEST(BackwardOnDevice, EveryBucketLeavesThoughNoneHasArrived) {
  if (world()->size() == 1) return;  // nothing is reduced
  Job job = job_of(200, 1, 64);
  job.buffers = 3;
  FakeRuntime runtime;
  EXPECT_EQ(train(runtime, job, false).launched, 200);
  FakeRuntime control;
  EXPECT_EQ(train(control, job, true).launched, 3);
}

// Of two buckets, and what backward is making.
TEST(BackwardOnDevice, GradientsOfTwoBucketsAreAlive) {
  if (world()->size() == 1) return;  // gradients stay
  for (const int64_t parameters : {1, 4}) {
    const Job job = job_of(50, parameters, 64);
    FakeRuntime runtime;
    EXPECT_LE(train(runtime, job, false).peak_bytes, (2 * parameters + 1) * 64 * 4);
  }
}

/// Counts what the thread that makes it asks of the device, but for memory.
class CountingRuntime final : public FakeRuntime {
 public:
  std::map<std::string, int64_t> calls;

  void record(device::Event event, device::Stream stream) override {
    count("record");
    FakeRuntime::record(event, stream);
  }
  void wait(device::Stream stream, device::Event event) override {
    count("wait");
    FakeRuntime::wait(stream, event);
  }
  bool query(device::Event event) override {
    count("query");
    return FakeRuntime::query(event);
  }
  void assign(const at::Tensor& to, const at::Tensor& from) override {
    count("operation");
    FakeRuntime::assign(to, from);
  }
  void fill(const at::Tensor& tensor, double value) override {
    count("operation");
    FakeRuntime::fill(tensor, value);
  }
  void add(const at::Tensor& sum, const at::Tensor& term) override {
    count("operation");
    FakeRuntime::add(sum, term);
  }
  void keep(const at::Tensor& tensor) override {
    count("keep");
    FakeRuntime::keep(tensor);
  }

 private:
  void count(const char* what) {
    if (std::this_thread::get_id() == thread_) ++calls[what];
  }
  const std::thread::id thread_ = std::this_thread::get_id();
};

// Per bucket, and not per parameter: an event behind the gradients, one behind their packing and NCCL's two, and the
// waits for those and for the buffer. Once a round: the stream of all that comes beside.
TEST(BackwardOnDevice, CostsTheHostCallsPerBucketNotPerParameter) {
  if (world()->size() == 1) return;
  constexpr int64_t kBuckets = 20;
  for (const int64_t parameters : {1, 8}) {
    SCOPED_TRACE(std::to_string(parameters) + " parameters per bucket");
    CountingRuntime runtime;
    std::map<std::string, int64_t> calls;
    DeviceTrainer trainer(runtime, Transport::nccl);
    trainer.backward_is_beside = true;
    trainer.watch_seconds = 0.2;
    trainer.before_backward = [&] { runtime.calls.clear(); };
    trainer.after_last_backward = [&] { calls = runtime.calls; };
    trainer.run(job_of(kBuckets, parameters, 64));
    EXPECT_LE(calls["record"], 4 * kBuckets + 2);
    EXPECT_LE(calls["wait"], 4 * kBuckets + 1);
    EXPECT_EQ(calls["operation"], 0);
    EXPECT_EQ(calls["keep"], 0);
  }
}

}  // namespace
}  // namespace zerosched::testing
