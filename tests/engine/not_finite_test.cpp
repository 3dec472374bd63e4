// Gradients that hold an inf or a NaN: told, skipped or let through, and never silently.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/adamw.h>
#include <zerosched/clip_grad.h>
#include <zerosched/grad_scaler.h>
#include <zerosched/sgd.h>

#include <filesystem>
#include <limits>

namespace zerosched::testing {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

class NotFinite : public ::testing::Test {
 protected:
  const int size = world()->size();
  const int rank = world()->rank();
  const int last = size - 1;
  NamedParameters parameters;

  /// Over fresh parameters.
  std::unique_ptr<AdamWScheduleFree> make(const ShardingOptions& sharding = buckets_of(1)) {
    parameters = make_parameters({{40}, {41}, {42}});
    auto optimizer =
        std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)}, world(),
            AdamWScheduleFreeOptions(0.01), sharding);
    world_barrier();
    return optimizer;
  }
  void run_backward(int64_t step) { backward(parameters, random_gradients(parameters, step, rank)); }
  /// With `value` in one element of `name` on the last rank.
  void run_backward_with(const std::string& name, double value, int64_t step) {
    Gradients gradients = random_gradients(parameters, step, rank);
    if (rank == last) gradients.at(name).view(-1)[30] = value;
    backward(parameters, gradients);
  }
};

// p2's bucket is the first to leave and carries what ranks tell each other, so all know before anyone steps.
TEST_F(NotFinite, ByDefaultStepThrowsAndChangesNothing) {
  for (const bool overlap : {true, false}) {
    for (const double value : {kNaN, kInf}) {
      const auto optimizer = make(buckets_of(1).overlap_backward(overlap));
      run_backward(0);
      optimizer->step();
      optimizer->zero_grad();
      const State before = full_state(*optimizer);
      run_backward_with("p2", value, 1);
      expect_error([&] { optimizer->step(); }, {"rank " + std::to_string(last), "gradient of parameter 'p2'",
                                                   "inf or a NaN", "step 2", "NonFinite::skip"});
      if (size == 1) continue;  // there the update itself has seen it
      optimizer->zero_grad();
      expect_same_bits(full_state(*optimizer), before);
      run_backward(1);
      optimizer->step();
    }
  }
}

TEST_F(NotFinite, AGradientThatComesLateEndsTheOptimizerOnEveryRank) {
  for (const bool overlap : {true, false}) {
    const auto optimizer = make(buckets_of(1).overlap_backward(overlap));
    run_backward_with("p0", kNaN, 0);
    expect_error([&] { optimizer->step(); },
        {"rank " + std::to_string(last), "gradient of parameter 'p0'", "inf or a NaN", "step 1"});
  }
}

// A loss that is NaN makes every gradient NaN. In a world of one, and of averages, nothing is copied that could be looked
// at on the way, and the state stays as it was all the same.
TEST_F(NotFinite, ALossThatIsNaNDoesNotReachTheState) {
  for (const bool averaged : {false, true}) {
    const auto optimizer =
        make(averaged ? buckets_of(1).gradients(GradientInput::already_averaged) : buckets_of(1));
    const auto give = [&](int64_t step, double factor) {
      Gradients gradients = random_gradients(parameters, step, averaged ? 0 : rank);
      for (auto& named : gradients) named.second = named.second * factor;
      averaged ? set_gradients(parameters, gradients) : backward(parameters, gradients);
    };
    give(0, 1);
    optimizer->step();
    const State before = full_state(*optimizer);
    give(1, kNaN);
    expect_error([&] { optimizer->step(); }, {"gradient of parameter 'p", "inf or a NaN", "step 2"});
    optimizer->zero_grad();
    expect_same_bits(full_state(*optimizer), before);
    give(2, 1);
    optimizer->step();
  }
}

// A single one is seen once it is in the state: then nothing goes on from there, until a healthy state is loaded.
TEST_F(NotFinite, AloneAStateThatWasLostIsNotStepped) {
  if (size > 1) return;
  const Scratch scratch;
  const auto optimizer = make();
  optimizer->save_checkpoint(scratch / "a");
  run_backward_with("p1", kNaN, 0);
  expect_error([&] { optimizer->step(); }, {"gradient of parameter 'p1'"});
  run_backward(1);
  expect_error([&] { optimizer->step(); }, {"state holds an inf or a NaN", "Load a checkpoint"});
  optimizer->load_checkpoint(scratch / "a");
  run_backward(1);
  optimizer->step();
}

TEST_F(NotFinite, WithClippingNothingIsChangedWhicheverGradientItIs) {
  for (const bool by_function : {true, false}) {
    const auto optimizer = make(by_function ? buckets_of(1) : buckets_of(1).max_grad_norm(1.0));
    const State before = full_state(*optimizer);
    run_backward_with("p0", kNaN, 0);
    if (by_function) {
      EXPECT_TRUE(std::isnan(clip_grad_norm_(*optimizer, 1.0)));
    }
    expect_error([&] { optimizer->step(); },
        {"rank " + std::to_string(last), "gradient of parameter 'p0'", "inf or a NaN", "step 1"});
    expect_same_bits(full_state(*optimizer), before);
    run_backward(1);
    optimizer->step();
  }
}

// 3e38 on two ranks: finite on each, and their sum is not.
TEST_F(NotFinite, ASumThatOverflowsIsSeenByItsOwner) {
  if (size == 1) return;
  const auto optimizer = make();
  Gradients gradients = random_gradients(parameters, 0, rank);
  gradients.at("p1").fill_(3e38);
  backward(parameters, gradients);
  expect_error([&] { optimizer->step(); }, {"sum over ranks of the gradient of parameter 'p1'", "step 1"});
}

// The gradient and z stay finite there, and v would be inf for ever.
TEST_F(NotFinite, ASquareThatOverflowsIsSeenToo) {
  const auto optimizer = make();
  Gradients gradients = random_gradients(parameters, 0, rank);
  gradients.at("p1").fill_(1e30);
  backward(parameters, gradients);
  expect_error(
      [&] { optimizer->step(); }, {"the state in the bucket of parameter 'p1'", "overflow", "step 1"});
}

TEST_F(NotFinite, SkippedStepsAdvanceNothing) {
  for (const bool overlap : {true, false}) {
    const NamedParameters twins = make_parameters({{40}, {41}, {42}});
    AdamWScheduleFree without(
        {ParameterGroup(twins)}, world(), AdamWScheduleFreeOptions(0.01), buckets_of(1));
    const auto optimizer = make(buckets_of(1).overlap_backward(overlap).non_finite(NonFinite::skip));
    for (int64_t step = 0; step < 5; ++step) {
      optimizer->zero_grad();
      if (step % 2 == 1) {
        run_backward_with(step == 1 ? "p0" : "p2", step == 1 ? kNaN : -kInf, step);
        optimizer->step();
        continue;
      }
      run_backward(step);
      optimizer->step();
      backward(twins, random_gradients(twins, step, rank));
      without.step();
    }
    EXPECT_EQ(optimizer->skipped_steps(), 2);
    EXPECT_EQ(without.skipped_steps(), 0);
    expect_same_bits(full_state(*optimizer), full_state(without));
  }
}

TEST_F(NotFinite, IgnoredItStaysInItsElement) {
  const auto optimizer = make(buckets_of(1).non_finite(NonFinite::ignore));
  run_backward_with("p1", kNaN, 0);
  optimizer->step();
  EXPECT_EQ(optimizer->full_state("x").at("p1").isnan().sum().item<int64_t>(), 1);
}

TEST_F(NotFinite, RotationKeepsTheLastCheckpointWithAFiniteState) {
  const Scratch scratch;
  const auto optimizer = make(buckets_of(1).non_finite(NonFinite::ignore));
  const auto save = [&](const std::string& name) {
    optimizer->save_checkpoint(scratch / name, {}, CheckpointOptions().keep_last(3));
  };
  run_backward(0);
  optimizer->step();
  save("a");
  run_backward(1);
  optimizer->step();
  save("healthy");
  run_backward_with("p1", kNaN, 2);
  optimizer->step();
  for (const char* name : {"b", "c", "d", "e"}) save(name);
  namespace fs = std::filesystem;
  EXPECT_FALSE(fs::exists(scratch / "a"));
  EXPECT_TRUE(fs::exists(scratch / "healthy"));
  EXPECT_FALSE(fs::exists(scratch / "c"));
  EXPECT_TRUE(fs::exists(scratch / "d"));
  EXPECT_TRUE(fs::exists(scratch / "e"));
  // It knows of itself after loading, and health comes back with a healthy state.
  optimizer->load_checkpoint(scratch / "e");
  save("f");
  EXPECT_TRUE(fs::exists(scratch / "healthy"));
  optimizer->load_checkpoint(scratch / "healthy");
  for (const char* name : {"g", "h", "i"}) save(name);
  EXPECT_FALSE(fs::exists(scratch / "healthy"));
  world_barrier();
}

// 1/scale would be an inf in float32, in which the gradient is unscaled, though the norm is finite in float64.
TEST_F(NotFinite, AScaleWhoseInverseOverflowsSkips) {
  const auto optimizer = make();
  GradScaler scaler(GradScalerOptions().init_scale(1e-40).min_scale(1e-45));
  run_backward(0);
  EXPECT_FALSE(scaler.step(*optimizer));
  for (const auto& [name, parameter] : parameters) EXPECT_TRUE(parameter.isfinite().all().item<bool>());
}

TEST_F(NotFinite, TheScaleHasAFloorAndComesBack) {
  const auto optimizer = make();
  GradScaler scaler(GradScalerOptions().growth_interval(1));
  constexpr int64_t kOverflows = 300;
  for (int64_t step = 0; step < kOverflows; ++step) {
    run_backward_with("p1", kInf, step);
    EXPECT_FALSE(scaler.step(*optimizer));
  }
  EXPECT_EQ(scaler.skips_in_a_row(), kOverflows);
  EXPECT_EQ(optimizer->skipped_steps(), kOverflows);
  EXPECT_EQ(scaler.get_scale(), 1.0 / 65536);
  scaler.load_state(scaler.get_scale(), scaler.growth_tracker());  // what a checkpoint would do
  run_backward(0);
  EXPECT_TRUE(scaler.step(*optimizer));
  EXPECT_EQ(scaler.skips_in_a_row(), 0);
  EXPECT_EQ(scaler.get_scale(), 2.0 / 65536);
  for (const auto& [name, parameter] : parameters) EXPECT_TRUE(parameter.isfinite().all().item<bool>());
}

TEST_F(NotFinite, WorksWithOptimizersOfTwoStateTensors) {
  for (const bool adam : {true, false}) {
    const NamedParameters fresh = make_parameters({{40}, {41}});
    const std::vector<ParameterGroup> groups = {ParameterGroup(fresh)};
    std::unique_ptr<ShardedOptimizer> optimizer;
    if (adam) {
      optimizer = std::make_unique<AdamW>(groups, world(), AdamWOptions(0.01), buckets_of(1));
    } else {
      optimizer = std::make_unique<SGD>(groups, world(), SGDOptions(0.01), buckets_of(1));
    }
    world_barrier();
    Gradients gradients = random_gradients(fresh, 0, rank);
    if (rank == last) gradients.at("p0").view(-1)[3] = kInf;
    backward(fresh, gradients);
    expect_error([&] { optimizer->step(); }, {"gradient of parameter 'p0'", "step 1"});
  }
}

}  // namespace
}  // namespace zerosched::testing
