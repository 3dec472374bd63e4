// Loss scaling: an overflow on one rank skips the step on all and leaves no trace.
#include "engine/toy.h"
#include "support/world.h"

#include <zerosched/grad_scaler.h>

#include <cmath>
#include <limits>

namespace zerosched::testing {
namespace {

Gradients scaled(Gradients gradients, double scale) {
  for (auto& named : gradients) named.second = named.second * scale;
  return gradients;
}

Gradients with_infinity(Gradients gradients, const std::string& name) {
  gradients.at(name).view(-1)[0].fill_(std::numeric_limits<double>::infinity());
  return gradients;
}

struct Trainer {
  NamedParameters parameters;
  AdamWScheduleFree optimizer;

  explicit Trainer(const ShardingOptions& sharding = buckets_of(200), at::ScalarType dtype = at::kFloat)
      : parameters(make_parameters(odd_shapes(), dtype)),
        optimizer({ParameterGroup(parameters)}, world(),
            AdamWScheduleFreeOptions(0.01).weight_decay(0.1).warmup_steps(4).r(1), sharding) {}
};

TEST(GradScaler, PowersOfTwoChangeNoBit) {
  for (const bool overlap : {true, false}) {
    for (const std::optional<double> max_norm : {std::optional<double>(), std::optional<double>(0.5)}) {
      const auto sharding = buckets_of(200).overlap_backward(overlap).max_grad_norm(max_norm);
      Trainer plain(sharding), with_scale(sharding);
      GradScaler scaler(GradScalerOptions().init_scale(1024).growth_interval(2));
      for (int64_t step = 0; step < 5; ++step) {
        const Gradients gradients = random_gradients(plain.parameters, step, world()->rank());
        plain.optimizer.zero_grad();
        backward(plain.parameters, gradients);
        plain.optimizer.step();
        with_scale.optimizer.zero_grad();
        backward(with_scale.parameters, scaled(gradients, scaler.get_scale()));
        EXPECT_TRUE(scaler.step(with_scale.optimizer));
        EXPECT_NEAR(with_scale.optimizer.grad_norm(), plain.optimizer.grad_norm(), 1e-12);
      }
      EXPECT_EQ(scaler.get_scale(), 4096);
      expect_same_bits(full_state(with_scale.optimizer), full_state(plain.optimizer));
    }
  }
}

struct Skip {
  double bad;
  bool overlap;
  std::optional<double> max_norm;
  int64_t at_step;
};

// Everything that a step carries to the next takes part in what follows: k in the bias correction, the warmup
// and (k+1)^r, weight_sum and lr_max in the average. With lr raised in the skipped step, lr_max would stay
// too high.
TEST(GradScaler, OverflowOnOneRankSkipsTheStepOnAll) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const int rank = world()->rank();
  const int last = world()->size() - 1;
  for (const auto& skip : std::vector<Skip>{{infinity, true, {}, 2}, {nan, true, 0.5, 2}, {nan, false, {}, 2},
           {infinity, false, 0.5, 2}, {-infinity, true, {}, 0}, {infinity, true, 0.5, 0}}) {
    const auto sharding = buckets_of(200).overlap_backward(skip.overlap).max_grad_norm(skip.max_norm);
    Trainer run(sharding), undisturbed(sharding);
    GradScaler scaler(GradScalerOptions().init_scale(8).growth_interval(3));
    auto& options = run.optimizer.param_groups()[0].options();
    const auto used = [&](int64_t step) {
      Gradients gradients = random_gradients(run.parameters, step, rank);
      gradients.erase("p3");                    // nobody
      if (rank != last) gradients.erase("p8");  // the last rank alone
      return gradients;
    };
    for (int64_t step = 0; step < 6; ++step) {
      if (step == skip.at_step) {
        Gradients overflowing = used(77);
        if (rank == last) overflowing.at("p8").view(-1)[6].fill_(skip.bad);
        const State before = full_state(run.optimizer);
        run.optimizer.zero_grad();
        backward(run.parameters, overflowing);
        options.set_lr(1);
        EXPECT_FALSE(scaler.step(run.optimizer));
        options.set_lr(0.01);
        EXPECT_EQ(scaler.get_scale(), 4);
        EXPECT_EQ(scaler.growth_tracker(), 0);
        expect_same_bits(full_state(run.optimizer), before);
        expect_parameters_are(run.parameters, before.at("y"));
      }
      run.optimizer.zero_grad();
      backward(run.parameters, scaled(used(step), scaler.get_scale()));
      EXPECT_TRUE(scaler.step(run.optimizer));
      undisturbed.optimizer.zero_grad();
      backward(undisturbed.parameters, used(step));
      undisturbed.optimizer.step();
    }
    EXPECT_EQ(scaler.get_scale(), skip.at_step == 0 ? 16 : 8);  // grown after three steps without overflow
    expect_same_bits(full_state(run.optimizer), full_state(undisturbed.optimizer));
  }
}

// The norm of the skipped step is infinite or NaN, and known to every rank.
TEST(GradScaler, AnOverflowShowsInTheNorm) {
  Trainer run;
  GradScaler scaler;
  backward(run.parameters, with_infinity(random_gradients(run.parameters, 0, 0), "p3"));
  EXPECT_FALSE(scaler.step(run.optimizer));
  if (world()->rank() == 0) {
    EXPECT_FALSE(std::isfinite(run.optimizer.grad_norm()));
  }
}

TEST(GradScaler, OverflowInAnAccumulatedPass) {
  Trainer run, undisturbed;
  GradScaler scaler(GradScalerOptions().init_scale(2));
  const State before = full_state(run.optimizer);
  {
    const auto hold = run.optimizer.no_sync();
    Gradients gradients = random_gradients(run.parameters, 0, world()->rank());
    backward(run.parameters, world()->rank() == 0 ? with_infinity(gradients, "p3") : gradients);
  }
  backward(run.parameters, random_gradients(run.parameters, 1, world()->rank()));
  EXPECT_FALSE(scaler.step(run.optimizer));
  EXPECT_EQ(scaler.get_scale(), 1);
  expect_same_bits(full_state(run.optimizer), before);

  for (Trainer* each : {&run, &undisturbed}) {
    backward(each->parameters, random_gradients(each->parameters, 2, world()->rank()));
    each == &run ? static_cast<void>(scaler.step(run.optimizer)) : static_cast<void>(each->optimizer.step());
  }
  expect_same_bits(full_state(run.optimizer), full_state(undisturbed.optimizer));
}

TEST(GradScaler, ClippingSeesUnscaledGradients) {
  Trainer run(buckets_of(200).max_grad_norm(0.25));
  GradScaler scaler(GradScalerOptions().init_scale(4096));
  const Gradients gradients = random_gradients(run.parameters, 0, 0);
  backward(run.parameters, scaled(gradients, scaler.get_scale()));
  EXPECT_TRUE(scaler.step(run.optimizer));
  double squares = 0;
  for (const auto& named : gradients) squares += named.second.to(at::kDouble).square().sum().item<double>();
  EXPECT_NEAR(run.optimizer.grad_norm(), std::sqrt(squares), 1e-5 * std::sqrt(squares));
}

TEST(GradScaler, ScalesTheLossAndRestores) {
  GradScaler scaler(GradScalerOptions().init_scale(16));
  EXPECT_EQ(scaler.scale(at::full({}, 0.5)).item<double>(), 8);
  scaler.load_state(32, 5);
  EXPECT_EQ(scaler.get_scale(), 32);
  EXPECT_EQ(scaler.growth_tracker(), 5);
  expect_error([&] { scaler.load_state(-1, 0); }, {"scale", "positive"});
  expect_error([&] { scaler.load_state(1, 2000); }, {"growth_tracker", "2000"});
}

TEST(GradScaler, TheScaleGrowsNoFurtherThanFloat32) {
  Trainer run;
  GradScaler scaler(GradScalerOptions().init_scale(std::ldexp(1.0, 126)).growth_interval(1));
  for (int64_t step = 0; step < 3; ++step) {
    backward(run.parameters, random_gradients(run.parameters, step, 0));
    EXPECT_TRUE(scaler.step(run.optimizer));
    EXPECT_EQ(scaler.get_scale(), std::ldexp(1.0, 127));
  }
}

TEST(GradScaler, OptionsAreChecked) {
  expect_error([] { GradScaler(GradScalerOptions().init_scale(0)); }, {"init_scale"});
  expect_error([] { GradScaler(GradScalerOptions().growth_factor(1)); }, {"growth_factor"});
  expect_error([] { GradScaler(GradScalerOptions().backoff_factor(1)); }, {"backoff_factor"});
  expect_error([] { GradScaler(GradScalerOptions().growth_interval(0)); }, {"growth_interval"});
}

}  // namespace
}  // namespace zerosched::testing
