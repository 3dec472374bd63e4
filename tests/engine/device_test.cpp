// The engine on a device: the bits of the CPU, on a fake one that runs streams in the worst order that events
// allow, and every wait that sees to it is missed when it is forgotten.
#include "comm/mpi/mpi_backend.h"
#include "device/fake_runtime.h"
#include "engine/device_training.h"
#include "engine/fake_kernels.h"
#include "engine/passing_communicator.h"
#include "io/checkpoint.h"
#include "io/scratch.h"
#include "support/gather.h"
#include "support/world.h"

#ifdef ZEROSCHED_TEST_NCCL
#include "comm/fake_nccl.h"
#include "comm/nccl/nccl_backend.h"
#endif

#include <chrono>
#include <set>
#include <thread>

namespace zerosched {
namespace {

using testing::FakeKernels;
using testing::FakeRuntime;
using testing::Job;
using testing::on_host;
using testing::Outcome;

constexpr int kMain = 0, kNccl = 1;  // streams in the order of their creation

enum class Transport { nccl, staged };

/// Hooks come in two streams by turns. Nothing but the engine orders those and the one that steps: gradients
/// do not depend on parameters.
class DeviceTrainer final : public testing::Trainer {
 public:
  DeviceTrainer(FakeRuntime& runtime, Transport transport)
      : runtime_(runtime), kernels_(runtime), transport_(transport), main_(runtime.current_stream(0)) {}

  double watch_seconds = 0.005;
  using Streams = std::vector<device::Stream>;
  std::function<void(int64_t step, size_t buckets, const Streams&)> at_step = [](int64_t, size_t,
                                                                                  const Streams&) {};
  std::function<std::shared_ptr<Communicator>(std::shared_ptr<Communicator>)> wrap =
      [](std::shared_ptr<Communicator> made) { return made; };
  std::function<void()> at_end = [] {};

 protected:
  std::shared_ptr<Communicator> communicator() override {
    std::shared_ptr<Communicator> made;
#ifdef ZEROSCHED_TEST_NCCL
    if (transport_ == Transport::nccl) {
      auto& fake = testing::FakeNccl::instance();
      fake.reset(runtime_);
      detail::NcclOptions options;
      options.timeout_seconds = 20;
      options.watch_seconds = watch_seconds;
      options.api = &fake.api();
      options.runtime = &runtime_;
      made = detail::make_nccl_communicator(*testing::world(), std::nullopt, options);
    }
#endif
    if (transport_ == Transport::staged) {
      detail::MpiOptions options;
      options.timeout_seconds = 20;
      options.runtime = &runtime_;
      made = detail::make_mpi_communicator(MPI_COMM_WORLD, options);
    }
    side_ = runtime_.create_stream(0);  // after the transport's
    return wrap(made);
  }

  detail::DeviceBackend backend() override { return {&runtime_, &kernels_}; }
  at::Tensor place(const at::Tensor& value) override { return runtime_.to_device(value.reshape({-1})); }
  at::Tensor to_host(const at::Tensor& tensor) override { return runtime_.to_host(tensor); }

  at::Tensor y_now() override {
    int64_t numel = 0;
    for (const auto& [name, parameter] : parameters_) numel += parameter.numel();
    at::Tensor all = runtime_.empty(numel, parameters_.front().second.scalar_type(), 0);
    int64_t begin = 0;
    for (const auto& [name, parameter] : parameters_) {
      runtime_.assign(all.narrow(0, begin, parameter.numel()), parameter.detach().reshape({-1}));
      begin += parameter.numel();
    }
    return all;
  }

  at::Tensor make_gradient(const at::Tensor& value, int64_t parameter) override {
    runtime_.set_current_stream(parameter % 2 == 0 ? main_ : side_);
    const at::Tensor flat = runtime_.empty(value.numel(), value.scalar_type(), 0);
    runtime_.copy(flat.data_ptr(), value.const_data_ptr(), static_cast<int64_t>(value.nbytes()),
        runtime_.current_stream(0));
    values_.push_back(value);
    return flat.view(value.sizes());
  }

  void begin_step(int64_t step) override {
    runtime_.set_current_stream(main_);
    at_step(step, engine().layout().buckets.size(), {main_, side_});
  }
  void after_backward() override {
    runtime_.order(side_, main_);
    runtime_.set_current_stream(main_);
  }
  void end() override {
    runtime_.set_current_stream(main_);
    at_end();
  }

 private:
  FakeRuntime& runtime_;
  FakeKernels kernels_;
  std::vector<at::Tensor> values_;  ///< until the streams have copied them
  Transport transport_;
  device::Stream main_, side_;
};

std::vector<Transport> transports() {
#ifdef ZEROSCHED_TEST_NCCL
  return {Transport::nccl, Transport::staged};
#else
  return {Transport::staged};
#endif
}

TEST(EngineOnDevice, TrainsToTheBitsOfTheCpu) {
  const std::vector<Job> all = testing::jobs();
  for (size_t j = 0; j < all.size(); ++j) {
    const Outcome host = on_host(all[j]);
    for (const Transport transport : transports()) {
      for (uint64_t seed = 0; seed < 3; ++seed) {
        SCOPED_TRACE("job " + std::to_string(j) + (transport == Transport::nccl ? " nccl" : " staged") +
                     ", seed " + std::to_string(seed));
        FakeRuntime runtime(1, seed);
        testing::expect_same_bits(DeviceTrainer(runtime, transport).run(all[j]), host);
      }
    }
  }
}

// What the host learns of a step once the device has made it is told at the latest by the evaluation that follows.
TEST(EngineOnDevice, WhatIsLearntLateIsTold) {
  Job not_finite, clipped, differs;
  not_finite.overflows = clipped.overflows = true;
  clipped.max_grad_norm = 1;
  differs.lr_differs = true;
  const std::vector<std::pair<Job, std::string>> jobs = {{not_finite, "inf or a NaN in step 2"},
      {clipped, "inf or a NaN in step 2"}, {differs, "lr of parameter group 0 is 0.02"}};
  for (const auto& [job, text] : jobs) {
    if (job.lr_differs && testing::world_size() == 1) continue;
    testing::expect_error(
        [job = job] { on_host(job); }, {job.lr_differs ? text : "an inf or a NaN in step 2"});
    for (const Transport transport : transports()) {
      FakeRuntime runtime;
      DeviceTrainer trainer(runtime, transport);
      trainer.before_it_goes = [&] { trainer.engine().eval(); };
      testing::expect_error([&, job = job] { trainer.run(job); }, {text});
    }
  }
}

// What src/io does to the state is done in the stream of whoever asks for it.
class Checkpointing {
 public:
  explicit Checkpointing(FakeRuntime& runtime) : runtime_(runtime), options_(0.01) {}

  /// Saves at the end, in another stream than the steps were in.
  void save(DeviceTrainer& trainer, const std::string& dir) {
    in_another_stream(trainer,
        [this, &trainer, dir] { detail::save_checkpoint(trainer.engine(), {&options_}, dir, {}, {}); });
  }
  void load(DeviceTrainer& trainer, const std::string& dir) {
    in_another_stream(
        trainer, [this, &trainer, dir] { detail::load_checkpoint(trainer.engine(), {&options_}, dir); });
  }
  std::function<void(device::Stream)> on_stream = [](device::Stream) {};

 private:
  void in_another_stream(DeviceTrainer& trainer, std::function<void()> action) {
    trainer.at_end = [this, action = std::move(action)] {
      const device::Stream before = runtime_.current_stream(0);
      const device::Stream other = runtime_.create_stream(0);
      on_stream(other);
      runtime_.set_current_stream(other);
      action();
      runtime_.set_current_stream(before);
    };
  }

  FakeRuntime& runtime_;
  AdamWScheduleFreeOptions options_;
};

TEST(EngineOnDevice, CheckpointsHoldAndBringBackTheLastStep) {
  Job job, shorter;
  shorter.steps = 1;
  for (const Transport transport : transports()) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      SCOPED_TRACE(
          std::string(transport == Transport::nccl ? "nccl" : "staged") + ", seed " + std::to_string(seed));
      const testing::Scratch scratch;
      FakeRuntime runtime(1, seed);
      Checkpointing checkpointing(runtime);
      Outcome saved;
      {
        DeviceTrainer trainer(runtime, transport);
        checkpointing.save(trainer, scratch / "step");
        saved = trainer.run(job);
      }
      AdamWScheduleFree host({ParameterGroup(testing::first_parameters())}, testing::world());
      host.load_checkpoint(scratch / "step");
      testing::expect_same_bits(testing::full_state(host), saved.state);
      DeviceTrainer trainer(runtime, transport);
      checkpointing.load(trainer, scratch / "step");
      const Outcome loaded = trainer.run(shorter);
      testing::expect_same_bits(loaded.state, saved.state);
      EXPECT_TRUE(testing::same_bits(loaded.y_at_end, saved.y_at_end));
    }
  }
}

#ifdef ZEROSCHED_TEST_NCCL

/// The rules of engine/executor.h, by what is forgotten.
enum class Rule {
  none,
  enter,
  buffer_is_free,
  buffer_wait,
  shard_wait,
  keep,
  upload_query,
  norm_query,
  norm_wait,
  gather_wait
};

/// What is left out, on this rank.
struct Forgotten {
  Rule rule = Rule::none;
  bool now = false;
  size_t buckets = 0, launched = 0;  ///< reduce-scatters of the round
  int times = 0;                     ///< how often something was left out

  bool is(Rule which) {
    if (!now || rule != which) return false;
    ++times;
    return true;
  }
};

class ForgetfulRuntime final : public FakeRuntime {
 public:
  ForgetfulRuntime(Forgotten& forgotten, uint64_t seed) : FakeRuntime(1, seed), forgotten_(forgotten) {}
  void add_caller(device::Stream stream) { callers_.insert(stream.handle); }

  void copy(void* to, const void* from, int64_t byte_count, device::Stream stream) override {
    last_copy_ = byte_count;
    FakeRuntime::copy(to, from, byte_count, stream);
  }
  void record(device::Event event, device::Stream stream) override {
    recorded_[event.handle] = {stream.handle, last_copy_};
    FakeRuntime::record(event, stream);
  }
  void wait(device::Stream stream, device::Event event) override {
    const bool between_callers =
        callers_.count(stream.handle) > 0 && callers_.count(recorded_[event.handle].stream) > 0;
    if (!between_callers || !forgotten_.is(Rule::enter)) FakeRuntime::wait(stream, event);
  }
  bool query(device::Event event) override {
    const Recorded& recorded = recorded_[event.handle];
    const Rule rule =
        recorded.last_copy == sizeof(kernels::cuda::GradientNorm) ? Rule::norm_query : Rule::upload_query;
    return (callers_.count(recorded.stream) > 0 && forgotten_.is(rule)) || FakeRuntime::query(event);
  }
  void keep(const at::Tensor& tensor) override {
    if (!forgotten_.is(Rule::keep)) FakeRuntime::keep(tensor);
  }

 private:
  struct Recorded {
    void* stream = nullptr;
    int64_t last_copy = 0;  ///< bytes
  };
  Forgotten& forgotten_;
  std::set<void*> callers_;
  std::map<void*, Recorded> recorded_;
  int64_t last_copy_ = 0;
};

class ForgetfulWork final : public Work {
 public:
  ForgetfulWork(
      std::shared_ptr<Work> work, std::function<bool()> forgets_wait, std::function<bool()> forgets_done)
      : work_(std::move(work)),
        forgets_wait_(std::move(forgets_wait)),
        forgets_done_(std::move(forgets_done)) {}
  void wait() override {
    if (!forgets_wait_()) work_->wait();
  }
  bool done() const noexcept override { return forgets_done_() || work_->done(); }

 private:
  std::shared_ptr<Work> work_;
  std::function<bool()> forgets_wait_, forgets_done_;
};

class ForgetfulCommunicator final : public testing::PassingCommunicator {
 public:
  ForgetfulCommunicator(std::shared_ptr<Communicator> inner, Forgotten& forgotten)
      : PassingCommunicator(std::move(inner)), forgotten_(forgotten) {}
  std::shared_ptr<Communicator> duplicate() override { return nullptr; }

 private:
  std::shared_ptr<Work> launched(
      Collective kind, const CollectiveLabel& label, std::shared_ptr<Work> work) override {
    const bool is_norm = std::string(label.what) == "gradient norm";
    if (kind == Collective::reduce_scatter)
      forgotten_.launched = (forgotten_.launched + 1) % forgotten_.buckets;
    return std::make_shared<ForgetfulWork>(
        std::move(work),
        [this, kind, is_norm] {
          if (kind == Collective::all_gather) return forgotten_.is(Rule::gather_wait);
          if (is_norm) return forgotten_.is(Rule::norm_wait);
          if (kind != Collective::reduce_scatter) return false;
          return forgotten_.is(forgotten_.launched > 0 ? Rule::buffer_wait : Rule::shard_wait);
        },
        [this, kind] { return kind == Collective::reduce_scatter && forgotten_.is(Rule::buffer_is_free); });
  }

  Forgotten& forgotten_;
};

/// Which stream the host's questions leave where it is, so that what should come after it can be early.
enum class Held { none, caller, nccl };

struct Scenario {
  Job job;
  Rule rule;
  Held held;
  uint64_t seed = 0;
};

/// Whether a job goes wrong on any rank when a rule is forgotten from the second step on.
bool goes_wrong(const Scenario& scenario, const Outcome& host, bool forget) {
  Forgotten forgotten;
  forgotten.rule = scenario.rule;
  ForgetfulRuntime runtime(forgotten, scenario.seed);
  DeviceTrainer trainer(runtime, Transport::nccl);
  trainer.wrap = [&](std::shared_ptr<Communicator> made) {
    return std::make_shared<ForgetfulCommunicator>(std::move(made), forgotten);
  };
  trainer.at_step = [&](int64_t step, size_t buckets, const std::vector<device::Stream>& streams) {
    forgotten.buckets = buckets;
    if (step != 1) return;
    for (const device::Stream stream : streams) runtime.add_caller(stream);
    if (scenario.held != Held::none) runtime.hold_stream(scenario.held == Held::caller ? kMain : kNccl);
    forgotten.now = forget;
  };
  trainer.at_end = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the watching thread asks every 5
    runtime.hold_stream(-1);
    if (scenario.rule != Rule::gather_wait) forgotten.now = false;
  };
  bool right = false;
  try {
    right = testing::same_bits(trainer.run(scenario.job), host);
  } catch (const std::exception&) {
    // Numbers that were read too early may look like an error of the gradients.
    EXPECT_TRUE(forget);
  }
  EXPECT_EQ(forgotten.times > 0, forget);
  for (const auto& text : testing::gather_texts(right ? "right" : "wrong")) {
    if (text == "wrong") return true;
  }
  return false;
}

TEST(EngineOnDevice, EveryRuleIsNeeded) {  // but the last, below
  if (testing::world_size() == 1) return;  // nothing is reduced
  Job job, one_buffer, clipped, scaled;
  one_buffer.buffers = 1;
  clipped.max_grad_norm = 1;
  scaled.loss_scaling = true;
  const std::vector<std::pair<const char*, Scenario>> scenarios = {
      {"1", {job, Rule::enter, Held::none}},
      {"1, backward and step early", {job, Rule::enter, Held::nccl}},
      {"1, NCCL early", {job, Rule::enter, Held::caller}},
      {"2, by a look", {job, Rule::buffer_is_free, Held::nccl}},
      {"2, by a wait", {one_buffer, Rule::buffer_wait, Held::nccl}},
      {"3", {job, Rule::shard_wait, Held::nccl}},
      {"3, of the norm", {clipped, Rule::norm_wait, Held::nccl}},
      {"4", {one_buffer, Rule::keep, Held::none, 1}},
      {"5", {job, Rule::upload_query, Held::caller}},
      {"6", {scaled, Rule::norm_query, Held::none}},
      {"7", {job, Rule::gather_wait, Held::nccl}},
  };
  for (const auto& [name, scenario] : scenarios) {
    SCOPED_TRACE(name);
    const Outcome host = on_host(scenario.job);
    EXPECT_FALSE(goes_wrong(scenario, host, false));
    EXPECT_TRUE(goes_wrong(scenario, host, true));
  }
}

// Rule 1, of src/io. It holds twice: a save waits for what steps have yet to tell, so that it holds the last one even
// where it does not enter.
TEST(EngineOnDevice, CheckpointsHoldTheLastStepThoughTheyForgetToEnter) {
  if (testing::world_size() == 1) return;  // the gather asks for all before it at once
  Job job;
  const testing::State right = on_host(job).state;
  const auto holds_last_step = [&](bool forget) {
    const testing::Scratch scratch;
    Forgotten forgotten;
    forgotten.rule = Rule::enter;
    ForgetfulRuntime runtime(forgotten, 0);
    Checkpointing checkpointing(runtime);
    checkpointing.on_stream = [&](device::Stream other) {
      runtime.add_caller(runtime.current_stream(0));
      runtime.add_caller(other);
      forgotten.now = forget;
    };
    DeviceTrainer trainer(runtime, Transport::nccl);
    trainer.watch_seconds = 10;  // nobody asks meanwhile
    checkpointing.save(trainer, scratch / "step");
    trainer.run(job);
    EXPECT_EQ(forgotten.times > 0, forget);
    AdamWScheduleFree loaded({ParameterGroup(testing::first_parameters())}, testing::world());
    loaded.load_checkpoint(scratch / "step");
    for (const auto& [name, tensors] : testing::full_state(loaded)) {
      for (const auto& [parameter, tensor] : tensors) {
        if (!testing::same_bits(tensor, right.at(name).at(parameter))) return false;
      }
    }
    return true;
  };
  EXPECT_TRUE(holds_last_step(false));
  EXPECT_TRUE(holds_last_step(true));
}

// Rule 8: an optimizer that goes in another stream than it came in, with work still queued there.
TEST(EngineOnDevice, MemoryGoesAfterItsLastUser) {
  if (testing::world_size() == 1) return;  // the gather asks for all before it at once
  const Job job;
  const at::Tensor right = on_host(job).y_at_end;
  const auto y_is_right = [&](bool forget, uint64_t seed) {
    Forgotten forgotten;
    forgotten.rule = Rule::enter;
    ForgetfulRuntime runtime(forgotten, seed);
    const device::Stream first = runtime.current_stream(0);
    DeviceTrainer trainer(runtime, Transport::nccl);
    trainer.watch_seconds = 10;  // nobody asks meanwhile
    trainer.before_it_goes = [&] {
      const device::Stream late = runtime.create_stream(0);
      for (const device::Stream stream : {first, late}) runtime.add_caller(stream);
      runtime.set_current_stream(late);
      trainer.engine().eval();
      trainer.engine().train();
      forgotten.now = forget;
    };
    const at::Tensor y = trainer.run(job).y_at_end;
    EXPECT_EQ(forgotten.times, forget ? 1 : 0);
    for (const auto& text : testing::gather_texts(testing::same_bits(y, right) ? "right" : "wrong")) {
      if (text == "wrong") return false;
    }
    return true;
  };
  bool noticed = false;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    EXPECT_TRUE(y_is_right(false, seed));
    noticed = noticed || !y_is_right(true, seed);
  }
  EXPECT_TRUE(noticed);
}

// What waits on the host for the device has a way out.
TEST(EngineOnDevice, ANormThatNeverComesIsGivenUpWithTheCommunicator) {
  Job job;
  job.max_grad_norm = 1;
  job.steps = 1;
  FakeRuntime runtime;
  DeviceTrainer trainer(runtime, Transport::nccl);
  std::thread peer;
  trainer.at_end = [&] {
    runtime.hold_stream(kNccl);
    peer = std::thread([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      trainer.engine().communicator()->abort("enough");
    });
  };
  testing::expect_error([&] { trainer.run(job); }, {"enough"});
  runtime.hold_stream(-1);
  peer.join();
}

#endif

}  // namespace
}  // namespace zerosched
