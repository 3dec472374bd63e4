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
        optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(0.01).weight_decay(0.1), sharding) {}
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
      if (max_norm) {
        // The factor of clipping is computed from the norm of the scaled gradient, which rounds by itself.
        for (const char* which : {"z", "x", "v"}) {
          const auto expected = plain.optimizer.full_state(which);
          for (const auto& [name, tensor] : with_scale.optimizer.full_state(which)) {
            EXPECT_TRUE(at::allclose(tensor, expected.at(name), 1e-5, 1e-7)) << which << " of " << name;
          }
        }
      } else {
        expect_same_bits(full_state(with_scale.optimizer), full_state(plain.optimizer));
      }
    }
  }
}

TEST(GradScaler, OverflowOnOneRankSkipsTheStepOnAll) {
  const int last = world()->size() - 1;
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    for (const bool overlap : {true, false}) {
      const auto sharding = buckets_of(200).overlap_backward(overlap);
      Trainer run(sharding), undisturbed(sharding);
      GradScaler scaler(GradScalerOptions().init_scale(8).growth_interval(3));
      for (int64_t step = 0; step < 6; ++step) {
        const Gradients gradients = random_gradients(run.parameters, step, world()->rank());
        if (step == 2) {
          Gradients overflowing = random_gradients(run.parameters, 77, world()->rank());
          if (world()->rank() == last) overflowing.at("p5").view(-1)[7].fill_(bad);
          const State before = full_state(run.optimizer);
          run.optimizer.zero_grad();
          backward(run.parameters, overflowing);
          EXPECT_FALSE(scaler.step(run.optimizer));
          EXPECT_EQ(scaler.get_scale(), 4);
          EXPECT_EQ(scaler.growth_tracker(), 0);
          expect_same_bits(full_state(run.optimizer), before);
          expect_parameters_are(run.parameters, before.at("y"));
        }
        run.optimizer.zero_grad();
        backward(run.parameters, scaled(gradients, scaler.get_scale()));
        EXPECT_TRUE(scaler.step(run.optimizer));
        undisturbed.optimizer.zero_grad();
        backward(undisturbed.parameters, gradients);
        undisturbed.optimizer.step();
      }
      EXPECT_EQ(scaler.get_scale(), 8);  // grown after three steps without overflow
      expect_same_bits(full_state(run.optimizer), full_state(undisturbed.optimizer));
    }
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

TEST(GradScaler, OptionsAreChecked) {
  expect_error([] { GradScaler(GradScalerOptions().init_scale(0)); }, {"init_scale"});
  expect_error([] { GradScaler(GradScalerOptions().growth_factor(1)); }, {"growth_factor"});
  expect_error([] { GradScaler(GradScalerOptions().backoff_factor(1)); }, {"backoff_factor"});
  expect_error([] { GradScaler(GradScalerOptions().growth_interval(0)); }, {"growth_interval"});
}

}  // namespace
}  // namespace zerosched::testing
