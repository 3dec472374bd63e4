// Parameters that others write: noticed, told to everyone, and set right by what the message advises.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/safetensors.h>

#include <filesystem>

namespace zerosched::testing {
namespace {

class Writes : public ::testing::TestWithParam<bool> {
 protected:
  const bool overlap = GetParam();
  const int size = world()->size();
  const int rank = world()->rank();
  NamedParameters parameters;

  std::unique_ptr<AdamWScheduleFree> make() {
    parameters = make_parameters({{40}, {41}, {42}});
    auto optimizer =
        std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)}, world(),
            AdamWScheduleFreeOptions(0.01), buckets_of(1).overlap_backward(overlap));
    world_barrier();
    return optimizer;
  }
  void run_backward(int64_t step) { backward(parameters, random_gradients(parameters, step, rank)); }
  void run_step(AdamWScheduleFree& optimizer, int64_t step) {
    optimizer.zero_grad();
    run_backward(step);
    optimizer.step();
  }
  at::Tensor parameter(size_t p) { return parameters[p].second; }
};

// As WGAN does: p.data().clamp_(-c, c) after every step. The version of the parameter does not change.
TEST_P(Writes, ThroughDataAreNoticedAtTheFirstStep) {
  for (int64_t before = 0; before < 2; ++before) {
    const auto optimizer = make();
    for (int64_t step = 0; step < before; ++step) run_step(*optimizer, step);
    parameter(1).data().clamp_(-0.1, 0.1);
    run_backward(before);
    expect_error([&] { optimizer->step(); }, {"parameter 'p1' was written", "reset_from_parameters()"});
    // The advice works.
    optimizer->reset_from_parameters();
    EXPECT_LE(optimizer->full_state("z").at("p1").abs().max().item<float>(), 0.1F);
    optimizer->zero_grad();
    run_step(*optimizer, before);
    run_step(*optimizer, before + 1);
  }
}

TEST_P(Writes, ThroughDataAreNoticedAtEvalTrainSaveAndExport) {
  const Scratch scratch;
  const std::vector<std::function<void(AdamWScheduleFree&)>> calls = {
      [](AdamWScheduleFree& optimizer) { optimizer.eval(); },
      [](AdamWScheduleFree& optimizer) { optimizer.train(); },
      [&](AdamWScheduleFree& optimizer) { optimizer.save_checkpoint(scratch / "a"); },
      [&](AdamWScheduleFree& optimizer) { export_safetensors(optimizer, scratch / "b"); }};
  for (size_t call = 0; call < calls.size(); ++call) {
    const auto optimizer = make();
    for (int64_t step = 0; step < 4; ++step) run_step(*optimizer, step);
    if (call == 1) optimizer->eval();
    parameter(2).data().mul_(0.5);
    expect_error([&] { calls[call](*optimizer); }, {"parameter 'p2' was written", "reset_from_parameters()"});
    optimizer->reset_from_parameters();
    calls[call](*optimizer);
    optimizer->train();
    run_step(*optimizer, 4);
  }
}

// What only one rank has written may belong to another rank's shard.
TEST_P(Writes, OfOneRankAloneAreNoticedWhereverTheyLie) {
  if (size == 1) return;
  for (int64_t element : {0, 39}) {
    const auto optimizer = make();
    run_step(*optimizer, 0);
    if (rank == size - 1) parameter(0).data()[element] = 7;
    expect_error(
        [&] { optimizer->eval(); }, {"rank " + std::to_string(size - 1), "parameter 'p0'", "written"});
    optimizer->reset_from_parameters();
    optimizer->eval();
  }
}

TEST_P(Writes, InPlaceBeforeBackwardLeaveTheOptimizerUsable) {
  const auto optimizer = make();
  for (int64_t step = 0; step < 3; ++step) run_step(*optimizer, step);  // the fourth does not compare bits
  {
    const at::NoGradGuard no_grad;
    if (rank == size - 1) parameter(0).add_(1);
  }
  run_backward(3);
  expect_error([&] { optimizer->step(); }, {"parameter 'p0'", "written", "reset_from_parameters()"});
  optimizer->reset_from_parameters();
  optimizer->zero_grad();
  run_step(*optimizer, 4);
}

// Evaluation with other weights, say an average of the trainer's own.
TEST_P(Writes, SwappedOutAndBackBitForBitAreNone) {
  const auto optimizer = make();
  const NamedParameters twins = make_parameters({{40}, {41}, {42}});
  AdamWScheduleFree other({ParameterGroup(twins)}, world(), AdamWScheduleFreeOptions(0.01),
      buckets_of(1).overlap_backward(overlap));
  const auto swap = [&] {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> kept;
    for (const auto& named : parameters) kept.push_back(named.second.clone());
    for (const auto& named : parameters) at::Tensor(named.second).fill_(0.5);
    for (size_t p = 0; p < parameters.size(); ++p) parameter(p).copy_(kept[p]);
  };
  for (int64_t step = 0; step < 6; ++step) {
    if (step % 2 == 1 || rank == 0) swap();
    run_step(*optimizer, step);
    other.zero_grad();
    backward(twins, random_gradients(twins, step, rank));
    other.step();
  }
  swap();
  optimizer->eval();
  swap();
  optimizer->train();
  expect_same_bits(full_state(*optimizer), full_state(other));
}

TEST_P(Writes, OfTheSameBitsBetweenBackwardAndStepAreNone) {
  const auto optimizer = make();
  for (int64_t step = 0; step < 4; ++step) {
    optimizer->zero_grad();
    run_backward(step);
    if (step % 2 == 1 || rank == 0) {
      const at::NoGradGuard no_grad;
      const at::Tensor kept = parameter(1).detach().clone();
      parameter(1).zero_();
      parameter(1).copy_(kept);
    }
    optimizer->step();
  }
}

// Too late for the others to be told in the step: the message says what helps then.
TEST_P(Writes, BetweenBackwardAndStepEndTheOptimizer) {
  if (!overlap) return;
  const auto optimizer = make();
  for (int64_t step = 0; step < 3; ++step) run_step(*optimizer, step);
  run_backward(3);
  {
    const at::NoGradGuard no_grad;
    if (rank == 0) parameter(1).add_(1);
  }
  expect_error([&] { optimizer->step(); }, {"rank 0: parameter 'p1' was written", "construct a new"});
  if (size > 1) return;
  optimizer->reset_from_parameters();
  run_step(*optimizer, 4);
}

INSTANTIATE_TEST_SUITE_P(Modes, Writes, ::testing::Bool(),
    [](const auto& info) { return info.param ? "Overlapping" : "Compatible"; });

// A parameter that is frozen for a while has no accumulator, and the state may be replaced meanwhile.
TEST(FrozenForAWhile, TheStateMayBeReplacedMeanwhile) {
  const Scratch scratch;
  const int rank = world()->rank();
  for (const bool overlap : {true, false}) {
    for (const char* how : {"load", "reset", "import"}) {
      const NamedParameters parameters = make_parameters({{40}, {41}, {42}});
      const NamedParameters twins = make_parameters({{40}, {41}, {42}});
      const auto sharding = buckets_of(1).overlap_backward(overlap);
      AdamWScheduleFree optimizer(
          {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(0.01), sharding);
      AdamWScheduleFree other({ParameterGroup(twins)}, world(), AdamWScheduleFreeOptions(0.01), sharding);
      const auto replace = [&](AdamWScheduleFree& of) {
        if (*how == 'l') of.load_checkpoint(scratch / "a");
        if (*how == 'r') of.reset_from_parameters();
        if (*how == 'i') import_safetensors(of, scratch / "b");
      };
      const auto step = [&](AdamWScheduleFree& of, const NamedParameters& named, int64_t number, bool all) {
        Gradients gradients = random_gradients(named, number, rank);
        if (!all) gradients.erase("p1");
        of.zero_grad();
        backward(named, gradients);
        of.step();
      };
      step(optimizer, parameters, 0, true);
      step(other, twins, 0, true);
      optimizer.save_checkpoint(scratch / "a");
      export_safetensors(optimizer, scratch / "b");
      const at::Tensor frozen = parameters[1].second;
      frozen.requires_grad_(false);
      step(optimizer, parameters, 1, false);
      step(other, twins, 1, false);
      replace(optimizer);
      replace(other);
      step(optimizer, parameters, 2, false);
      step(other, twins, 2, false);
      frozen.requires_grad_(true);
      for (int64_t number = 3; number < 6; ++number) {
        step(optimizer, parameters, number, true);
        step(other, twins, number, true);
      }
      expect_same_bits(full_state(optimizer), full_state(other));
    }
  }
}

TEST(PendingGradients, OfNoSyncPassesAreNotSavedSilently) {
  const Scratch scratch;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const NamedParameters parameters = make_parameters({{40}}, dtype);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
    {
      const auto hold = optimizer.no_sync();
      backward(parameters, random_gradients(parameters, 0, 0));
    }
    const std::string path = scratch / c10::toString(dtype);
    expect_error([&] { optimizer.save_checkpoint(path); }, {"no_sync()", "step() or zero_grad()"});
    EXPECT_FALSE(std::filesystem::exists(path));
    optimizer.zero_grad();
    optimizer.save_checkpoint(path);
  }
}

TEST(PendingGradients, OfParametersWithoutElementsAreNone) {
  const Scratch scratch;
  const NamedParameters parameters = make_parameters({{0, 3}, {40}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  for (int64_t step = 0; step < 2; ++step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer.step();
    optimizer.save_checkpoint(scratch / "a");
    optimizer.join();
  }
}

// As by an evaluation with other weights that were swapped in and out. The ranks that have joined look at it too.
TEST(SuspectedWrites, InABatchThatIsDroppedOnceOthersHaveJoined) {
  const NamedParameters parameters = make_parameters({{40}, {41}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  const auto run_backward = [&](int64_t step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
  };
  run_backward(0);
  optimizer.step();
  const State before = full_state(optimizer);
  if (world()->rank() == 0) {
    {
      const at::NoGradGuard no_grad;
      parameters[0].second.add_(0);
    }
    run_backward(1);
    optimizer.zero_grad();
  }
  optimizer.join();
  expect_same_bits(full_state(optimizer), before);
}

TEST(CompatibleMode, GradientsThatWereZeroedInEvalModeAreNone) {
  const NamedParameters parameters = make_parameters({{40}, {41}});
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), {}, buckets_of(1).overlap_backward(false));
  backward(parameters, random_gradients(parameters, 0, 0));
  optimizer.step();
  optimizer.eval();
  static_cast<torch::optim::Optimizer&>(optimizer).zero_grad(/*set_to_none=*/false);
  optimizer.train();
}

TEST(CompatibleMode, TrainNoticesGradientsThatWereTakenAtX) {
  const NamedParameters parameters = make_parameters({{40}, {41}});
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), {}, buckets_of(1).overlap_backward(false));
  world_barrier();
  backward(parameters, random_gradients(parameters, 0, 0));
  optimizer.step();
  optimizer.eval();  // .grad is still there
  optimizer.train();
  optimizer.eval();
  if (world()->rank() == world()->size() - 1) backward(parameters, random_gradients(parameters, 1, 0));
  expect_error([&] { optimizer.train(); },
      {"rank " + std::to_string(world()->size() - 1), "parameter 'p", "eval mode", "zero_grad()"});
  optimizer.zero_grad();
  optimizer.train();
  backward(parameters, random_gradients(parameters, 2, 0));
  optimizer.step();
}

}  // namespace
}  // namespace zerosched::testing
