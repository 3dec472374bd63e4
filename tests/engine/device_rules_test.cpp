// The rules about streams of engine/executor.h: every one of them is missed when it is forgotten.
#include "engine/device_trainer.h"
#include "engine/passing_communicator.h"
#include "io/scratch.h"
#include "support/gather.h"

#include <map>
#include <set>

namespace zerosched::testing {
namespace {

/// The rules of engine/executor.h, by what is forgotten.
enum class Rule {
  none,
  enter,
  enter_beside,
  packed_after_gradients,
  buffer_wait,
  shard_wait,
  release,
  keep,
  upload_query,
  norm_query,
  norm_wait,
  gather_wait,
  ready_wait,
  entry_wait
};

/// What is left out, on this rank.
struct Forgotten {
  Rule rule = Rule::none;
  bool now = false;
  size_t buckets = 0, launched = 0;  ///< reduce-scatters of the round
  bool in_ready = false;
  int times = 0;  ///< how often something was left out

  bool is(Rule which) {
    if (!now || rule != which) return false;
    ++times;
    return true;
  }
};

class ForgetfulRuntime final : public FakeRuntime {
 public:
  ForgetfulRuntime(Forgotten& forgotten, uint64_t seed) : FakeRuntime(1, seed), forgotten_(forgotten) {}
  /// A stream that the optimizer is called from.
  void add_caller(device::Stream stream) { callers_.insert(stream.handle); }
  void begin_step() { is_first_of_step_ = true; }

  device::Stream create_stream(int device) override {
    const device::Stream stream = FakeRuntime::create_stream(device);
    last_created_ = stream.handle;  // the engine's own is made last
    return stream;
  }
  void mark_beside() { beside_ = last_created_; }

  void copy(void* to, const void* from, int64_t byte_count, device::Stream stream) override {
    last_copy_ = byte_count;
    FakeRuntime::copy(to, from, byte_count, stream);
  }
  void record(device::Event event, device::Stream stream) override {
    recorded_[event.handle] = {stream.handle, last_copy_};
    FakeRuntime::record(event, stream);
  }
  void wait(device::Stream stream, device::Event event) override {
    if (!forgotten_.is(rule_of_wait(stream, event))) FakeRuntime::wait(stream, event);
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

  // Waits of collectives are ForgetfulWork's matter.
  Rule rule_of_wait(device::Stream stream, device::Event event) {
    void* before = recorded_[event.handle].stream;
    const bool to_caller = callers_.count(stream.handle) > 0, from_caller = callers_.count(before) > 0;
    if (to_caller && from_caller) return Rule::enter;
    if (to_caller && before == beside_) return Rule::release;
    if (stream.handle != beside_ || !from_caller) return Rule::none;
    return std::exchange(is_first_of_step_, false) ? Rule::enter_beside : Rule::packed_after_gradients;
  }

  Forgotten& forgotten_;
  std::set<void*> callers_;
  void *last_created_ = nullptr, *beside_ = nullptr;
  bool is_first_of_step_ = false;
  std::map<void*, Recorded> recorded_;
  int64_t last_copy_ = 0;
};

class ForgetfulWork final : public Work {
 public:
  ForgetfulWork(std::shared_ptr<Work> work, std::function<bool()> forgets_wait)
      : work_(std::move(work)), forgets_wait_(std::move(forgets_wait)) {}
  void wait() override {
    if (!forgets_wait_()) work_->wait();
  }
  bool done() const noexcept override { return work_->done(); }
  bool blocks_host() const noexcept override { return work_->blocks_host(); }

 private:
  std::shared_ptr<Work> work_;
  std::function<bool()> forgets_wait_;
};

class ForgetfulCommunicator final : public PassingCommunicator {
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
    return std::make_shared<ForgetfulWork>(std::move(work), [this, kind, is_norm] {
      if (kind == Collective::all_gather) {
        return forgotten_.is(Rule::gather_wait) ||
               forgotten_.is(forgotten_.in_ready ? Rule::ready_wait : Rule::entry_wait);
      }
      if (is_norm) return forgotten_.is(Rule::norm_wait);
      if (kind != Collective::reduce_scatter) return false;
      return forgotten_.is(forgotten_.launched > 0 ? Rule::buffer_wait : Rule::shard_wait);
    });
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
  bool backward_is_beside = false;  ///< and what it launches runs before the step that follows
  bool side_is_early = false;       ///< what is in the second stream runs before the rest of a step
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
  trainer.in_ready = [&](bool in_ready) { forgotten.in_ready = in_ready; };
  trainer.backward_is_beside = scenario.backward_is_beside;
  if (scenario.backward_is_beside) {
    // The watching thread asks for what backward has launched.
    trainer.watch_seconds = 0.0005;
    trainer.after_last_backward = [] { std::this_thread::sleep_for(std::chrono::milliseconds(150)); };
  }
  device::Stream side;
  trainer.at_step = [&](int64_t step, size_t buckets, const std::vector<device::Stream>& streams) {
    side = streams.back();
    forgotten.buckets = buckets;
    if (step == 0) runtime.mark_beside();
    runtime.begin_step();
    if (step > 1 && scenario.side_is_early) runtime.synchronize(side);
    if (step != 1) return;
    for (const device::Stream stream : streams) runtime.add_caller(stream);
    if (scenario.held != Held::none) runtime.hold_stream(scenario.held == Held::caller ? kMain : kNccl);
    forgotten.now = forget;
  };
  trainer.at_end = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the watching thread asks every 5
    if (scenario.side_is_early) runtime.synchronize(side);
    runtime.hold_stream(-1);
    if (scenario.rule != Rule::gather_wait) forgotten.now = false;
  };
  bool right = false;
  try {
    right = same_bits(trainer.run(scenario.job), host);
  } catch (const std::exception&) {
    // Numbers that were read too early may look like an error of the gradients.
    EXPECT_TRUE(forget);
  }
  // A rank that hears of another's wrong numbers may end before it leaves anything out itself.
  EXPECT_EQ(on_all_ranks(forgotten.times == 0), !forget);
  return !on_all_ranks(right);
}

TEST(EngineOnDevice, EveryRuleIsNeeded) {  // but the last, below
  Job job, one_buffer, clipped, scaled, compatible, scheduled, overlapping, by_entry;
  one_buffer.buffers = 1;
  clipped.max_grad_norm = 1;
  scaled.loss_scaling = true;
  compatible.overlaps = false;
  overlapping.overlaps_forward = by_entry.overlaps_forward = by_entry.waits_by_train = true;
  scheduled.lr_changes = true;  // what is told of a step too late is then told of the next
  std::vector<std::pair<const char*, Scenario>> scenarios;
  if (world_size() == 1) {
    // Gradients stay where they are, so the step has to come after the streams that made them.
    scenarios = {
        {"1", {job, Rule::enter, Held::none}},
        {"4", {job, Rule::keep, Held::caller, 0, false, /*side_is_early=*/true}},
    };
  } else {
    scenarios = {
        {"1, beside", {scheduled, Rule::enter_beside, Held::none, 0, /*backward_is_beside=*/true}},
        {"1, packing", {job, Rule::packed_after_gradients, Held::none}},
        {"2", {one_buffer, Rule::buffer_wait, Held::nccl}},
        {"3", {job, Rule::shard_wait, Held::nccl}},
        {"3, of the norm", {clipped, Rule::norm_wait, Held::nccl}},
        {"4", {one_buffer, Rule::release, Held::nccl, 1}},
        {"4, gradients that stay", {compatible, Rule::keep, Held::nccl, 0, false, /*side_is_early=*/true}},
        {"5", {job, Rule::upload_query, Held::caller}},
        {"6", {scaled, Rule::norm_query, Held::none}},
        {"7", {job, Rule::gather_wait, Held::nccl}},
        {"7, in ready()", {overlapping, Rule::ready_wait, Held::nccl}},
        {"7, in other calls", {by_entry, Rule::entry_wait, Held::nccl}},
    };
  }
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
  if (world_size() == 1) return;  // the gather asks for all before it at once
  Job job;
  const State right = on_host(job).state;
  const auto holds_last_step = [&](bool forget) {
    const Scratch scratch;
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
    trainer.watch_seconds = 0.2;  // few ask meanwhile
    checkpointing.save(trainer, scratch / "step");
    trainer.run(job);
    EXPECT_EQ(forgotten.times > 0, forget);
    AdamWScheduleFree loaded({ParameterGroup(first_parameters())}, world());
    loaded.load_checkpoint(scratch / "step");
    for (const auto& [name, tensors] : full_state(loaded)) {
      for (const auto& [parameter, tensor] : tensors) {
        if (!same_bits(tensor, right.at(name).at(parameter))) return false;
      }
    }
    return true;
  };
  EXPECT_TRUE(holds_last_step(false));
  EXPECT_TRUE(holds_last_step(true));
}

// Rule 8: an optimizer that goes in another stream than it came in, with work still queued there. At an orderly end the host
// waits for all of that anyway.
TEST(EngineOnDevice, MemoryGoesAfterItsLastUser) {
  if (world_size() == 1) return;  // the gather asks for all before it at once
  Job job;
  job.ends_in_exception = true;
  const at::Tensor right = on_host(job).y_at_end;
  const auto y_is_right = [&](bool forget, uint64_t seed) {
    Forgotten forgotten;
    forgotten.rule = Rule::enter;
    ForgetfulRuntime runtime(forgotten, seed);
    const device::Stream first = runtime.current_stream(0);
    DeviceTrainer trainer(runtime, Transport::nccl);
    trainer.watch_seconds = 0.2;  // few ask meanwhile
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
    for (const auto& text : gather_texts(same_bits(y, right) ? "right" : "wrong")) {
      if (text == "wrong") return false;
    }
    return true;
  };
  for (uint64_t seed = 1; seed <= 20; ++seed) EXPECT_TRUE(y_is_right(false, seed));
  uint64_t seed = 1;
  while (seed <= 500 && y_is_right(true, seed)) ++seed;
  EXPECT_LE(seed, 500U);
}

}  // namespace
}  // namespace zerosched::testing
