// What every rank must step with alike: options, loss scale. Ranks on which it differs are told, and all the others.
#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/grad_scaler.h>
#include <zerosched/sgd_schedulefree.h>

#include <cmath>
#include <limits>

namespace zerosched::testing {
namespace {

class Steering : public ::testing::Test {
 protected:
  const int size = world()->size();
  const int rank = world()->rank();
  const int last = size - 1;
  const NamedParameters parameters = make_parameters({{40}, {41}, {42}});

  std::unique_ptr<AdamWScheduleFree> make(const ShardingOptions& sharding = buckets_of(1)) {
    auto optimizer = std::make_unique<AdamWScheduleFree>(
        std::vector<ParameterGroup>{
            ParameterGroup({parameters[0], parameters[1]}), ParameterGroup({parameters[2]})},
        world(), AdamWScheduleFreeOptions(0.01), sharding);
    world_barrier();
    return optimizer;
  }
  void run_backward(int64_t step = 0) { backward(parameters, random_gradients(parameters, step, rank)); }
  static AdamWScheduleFreeOptions& options_of(AdamWScheduleFree& optimizer, size_t group) {
    return static_cast<AdamWScheduleFreeOptions&>(optimizer.param_groups()[group].options());
  }
};

// `change` on the last rank, before backward: an error in that very step.
TEST_F(Steering, OptionsThatOneRankChangesBeforeBackwardStopTheStep) {
  if (size == 1) return;
  const std::string of_rank = " on rank " + std::to_string(last);
  const std::vector<std::pair<std::function<void(AdamWScheduleFreeOptions&)>, std::vector<std::string>>>
      changes = {{[](AdamWScheduleFreeOptions& o) { o.set_lr(0.005); },
                     {"lr of parameter group 1 is 0.0050000000000000001" + of_rank, "0.01 on rank 0"}},
          {[](AdamWScheduleFreeOptions& o) {
             o.betas({0.5, 0.999});
           },
              {"beta1 of parameter group 1 is 0.5" + of_rank, "0.90000000000000002 on rank 0"}},
          {[](AdamWScheduleFreeOptions& o) { o.weight_decay(0.125); },
              {"weight_decay of parameter group 1 is 0.125" + of_rank, "0 on rank 0"}},
          {[](AdamWScheduleFreeOptions& o) { o.warmup_steps(7); },
              {"warmup_steps of parameter group 1 is 7" + of_rank, "0 on rank 0"}}};
  for (const bool overlap : {true, false}) {
    for (const auto& [change, parts] : changes) {
      const auto optimizer = make(buckets_of(1).overlap_backward(overlap));
      run_backward(0);
      optimizer->step();
      optimizer->zero_grad();
      if (rank == last) change(options_of(*optimizer, 1));
      run_backward(1);
      expect_error([&] { optimizer->step(); }, parts);
    }
  }
}

TEST_F(Steering, OptionsThatOneRankChangesAfterBackwardStopTheNextStep) {
  if (size == 1) return;
  const auto optimizer = make();
  run_backward(0);
  if (rank == last) options_of(*optimizer, 0).set_lr(0.005);
  optimizer->step();
  // Also where it has set it right again.
  options_of(*optimizer, 0).set_lr(0.01);
  run_backward(1);
  expect_error([&] { optimizer->step(); },
      {"lr of parameter group 0 is 0.0050000000000000001 on rank " + std::to_string(last), "0.01 on rank 0"});
}

TEST_F(Steering, OrTheEvaluationOrTheCheckpointThatComesFirst) {
  if (size == 1) return;
  for (const bool saves : {false, true}) {
    const auto optimizer = make();
    run_backward(0);
    if (rank == last) options_of(*optimizer, 0).set_lr(0.005);
    optimizer->step();
    expect_error([&] { saves ? optimizer->save_checkpoint("never/written") : optimizer->eval(); },
        {"lr of parameter group 0 is 0.0050000000000000001 on rank " + std::to_string(last),
            "0.01 on rank 0"});
  }
}

TEST_F(Steering, RanksMayChangeOptionsTogetherAtAnyTime) {
  const auto optimizer = make();
  for (int64_t step = 0; step < 4; ++step) {
    options_of(*optimizer, 0).set_lr(0.01 / static_cast<double>(step + 1));
    run_backward(step);
    options_of(*optimizer, 1).weight_decay(0.1 * static_cast<double>(step));
    optimizer->step();
  }
  optimizer->eval();
}

// The first bucket is complete in backward on some ranks, and not before step() on others: what they know of lr by then is
// not the same, and no error.
TEST_F(Steering, RanksMayChangeOptionsTogetherWhateverTheirGraphs) {
  for (const int without : {0, size - 1}) {
    for (const bool any : {true, false}) {
      const auto optimizer = make();
      for (int64_t step = 0; step < 4; ++step) {
        Gradients gradients = random_gradients(parameters, step, rank);
        if (rank == without) gradients.erase("p2");
        if (rank == without && !any) gradients.clear();
        backward(parameters, gradients);
        options_of(*optimizer, 0).set_lr(0.01 / static_cast<double>(step + 1));
        optimizer->step();
      }
      const auto evaluation = optimizer->eval_scope();
    }
  }
}

// The cosine of another processor: everybody steps with rank 0's value, to the bit.
TEST_F(Steering, LastBitsAreRankZeros) {
  for (const bool overlap : {true, false}) {
    State states[2];
    for (const bool differs : {false, true}) {
      const NamedParameters fresh = make_parameters({{40}, {41}, {42}});
      AdamWScheduleFree optimizer(std::vector<ParameterGroup>{ParameterGroup(fresh)}, world(),
          AdamWScheduleFreeOptions(0.01), buckets_of(1).overlap_backward(overlap));
      for (int64_t step = 0; step < 5; ++step) {
        double lr = 0.005 * (1 + std::cos(static_cast<double>(step) * 0.6));
        for (int i = 0; i < rank && differs; ++i) lr = std::nextafter(lr, 1.0);
        optimizer.zero_grad();
        optimizer.param_groups()[0].options().set_lr(lr);
        backward(fresh, random_gradients(fresh, step, rank));
        optimizer.step();
      }
      states[differs ? 1 : 0] = full_state(optimizer);
      const auto evaluation = optimizer.eval_scope();  // and nobody minds
    }
    expect_same_bits(states[0], states[1]);
  }
}

TEST_F(Steering, AveragedGradientsTakeTheSameOptionsToo) {
  if (size == 1) return;
  const auto optimizer = make(buckets_of(1).gradients(GradientInput::already_averaged));
  set_gradients(parameters, random_gradients(parameters, 0, 0));
  if (rank == last) options_of(*optimizer, 1).set_lr(0.005);
  expect_error([&] { optimizer->step(); },
      {"lr of parameter group 1 is 0.0050000000000000001 on rank " + std::to_string(last)});
}

TEST_F(Steering, LossScalesThatDiffer) {
  if (size == 1) return;
  const auto optimizer = make();
  GradScaler scaler(GradScalerOptions().init_scale(rank == last ? 4096 : 1024));
  run_backward(0);
  scaler.step(*optimizer);
  run_backward(1);
  expect_error([&] { scaler.step(*optimizer); },
      {"the loss scale is 4096 on rank " + std::to_string(last), "1024 on rank 0"});
}

TEST_F(Steering, OptionsOutOfRangeSayWhatTheConstructorSays) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<std::function<void(AdamWScheduleFreeOptions&)>, std::string>> changes = {
      {[&](AdamWScheduleFreeOptions& o) { o.set_lr(nan); }, "lr must be finite and not negative"},
      {[](AdamWScheduleFreeOptions& o) { o.set_lr(-1); }, "lr must be finite and not negative, got -1"},
      {[](AdamWScheduleFreeOptions& o) {
         o.betas({1.5, 0.999});
       },
          "beta1 must be in [0, 1], got 1.5"},
      {[](AdamWScheduleFreeOptions& o) {
         o.betas({0.9, 1.0});
       },
          "beta2 must be in [0, 1), got 1"}};
  for (const auto& [change, text] : changes) {
    const auto optimizer = make();
    run_backward();
    const State before = size == 1 ? State() : State();
    change(options_of(*optimizer, 1));
    expect_error([&] { optimizer->step(); }, {"parameter group 1", text});
    if (size > 1) continue;
    // Alone nothing is lost.
    options_of(*optimizer, 1) = AdamWScheduleFreeOptions(0.01);
    run_backward();
    optimizer->step();
  }
}

TEST_F(Steering, AWeightOfTheAverageThatOverflowsNamesR) {
  SGDScheduleFree optimizer({ParameterGroup(parameters)}, world(), SGDScheduleFreeOptions(0.01).r(100));
  world_barrier();
  int64_t steps = 0;
  expect_error(
      [&] {
        for (; steps < 1300; ++steps) {
          run_backward(steps);
          optimizer.step();
        }
      },
      {"r = 100", "weight_lr_power = 2"});
  EXPECT_GT(steps, 1000);
  for (const auto& [name, parameter] : parameters) EXPECT_TRUE(parameter.isfinite().all().item<bool>());
}

TEST_F(Steering, AWeightOfTheAverageThatUnderflowsIsAnErrorToo) {
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(1e-9).weight_lr_power(100));
  world_barrier();
  run_backward();
  expect_error([&] { optimizer.step(); }, {"weight_lr_power = 100", "lr"});
}

}  // namespace
}  // namespace zerosched::testing
