// What all the optimizers have in common, and their options. Their arithmetic is compared in tests/parity.
#include "engine/toy.h"
#include "support/world.h"

#include <zerosched/zerosched.h>

#include <torch/serialize/archive.h>

#include <limits>
#include <sstream>

namespace zerosched::testing {
namespace {

using Parameters = NamedParameters;
using CommunicatorPointer = std::shared_ptr<Communicator>;
using OptimizerPointer = std::unique_ptr<ShardedOptimizer>;

struct Kind {
  const char* name;
  std::vector<std::string> state;
  std::function<OptimizerPointer(const Parameters&, const CommunicatorPointer&, const ShardingOptions&)> make;
  /// Whether a step is of each element alone, and not of sums over all, which come in another order at another world size.
  bool is_of_elements = true;
};

template <typename Optimizer, typename Options>
Kind kind(const char* name, std::vector<std::string> state, const Options& options) {
  state.emplace_back("y");
  return {name, std::move(state),
      [options](const auto& parameters, const auto& communicator, const auto& sharding) {
        return std::make_unique<Optimizer>(
            std::vector<ParameterGroup>{ParameterGroup(parameters)}, communicator, options, sharding);
      }};
}

Kind of_sums(Kind kind) {
  kind.is_of_elements = false;
  return kind;
}

/// With a loss for those that take one.
void step(ShardedOptimizer& optimizer) {
  auto* by_loss = dynamic_cast<AdamWScheduleFreePlus*>(&optimizer);
  by_loss == nullptr ? static_cast<void>(optimizer.step()) : by_loss->step(at::full({}, 0.5));
}

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = {kind<AdamWScheduleFree>("AdamWScheduleFree", {"z", "x", "v"},
                                            AdamWScheduleFreeOptions(0.01).weight_decay(0.1).warmup_steps(3)),
      kind<AdamWScheduleFreePaper>("AdamWScheduleFreePaper", {"z", "x", "v"},
          AdamWScheduleFreePaperOptions(0.01).weight_decay(0.1).warmup_steps(3)),
      kind<RAdamScheduleFree>("RAdamScheduleFree", {"z", "x", "v"},
          RAdamScheduleFreeOptions(0.01).weight_decay(0.1).silent_sgd_phase(false)),
      kind<SGDScheduleFree>(
          "SGDScheduleFree", {"z", "x"}, SGDScheduleFreeOptions(0.1).weight_decay(0.1).warmup_steps(3)),
      kind<AdamWScheduleFree>("AdamWScheduleFree with inner momentum", {"z", "x", "m", "v"},
          AdamWScheduleFreeOptions(0.01).weight_decay(0.1).warmup_steps(3).inner_momentum(0.8).refinement(5)),
      kind<GPAAdamW>("GPAAdamW", {"z", "x", "m", "v"},
          GPAAdamWOptions(0.01).weight_decay(0.1).warmup_steps(3).eval_interp_coeff(0.9)),
      of_sums(kind<AdamWScheduleFreePlus>("AdamWScheduleFreePlus", {"z", "x", "m", "v"},
          AdamWScheduleFreePlusOptions().weight_decay(20).polyak_beta(0.5).sf_beta1_anneal_steps(4))),
      kind<AdamW>("AdamW", {"x", "m", "v"}, AdamWOptions(0.01)),
      kind<SGD>("SGD", {"x", "m"}, SGDOptions(0.1).momentum(0.9).weight_decay(0.1).nesterov(true))};
  return all;
}

State state_of(const Kind& kind, ShardedOptimizer& optimizer) {
  State state;
  for (const std::string& which : kind.state) state[which] = optimizer.full_state(which);
  return state;
}

State train(const Kind& kind, const CommunicatorPointer& communicator, const ShardingOptions& sharding,
    at::ScalarType dtype) {
  const Parameters parameters = make_parameters(odd_shapes(), dtype);
  const OptimizerPointer optimizer = kind.make(parameters, communicator, sharding);
  for (int64_t step = 0; step < 6; ++step) {
    optimizer->zero_grad();
    Gradients gradients = random_gradients(parameters, step, 0);
    if (step % 2 == 1) gradients.erase("p5");
    backward(parameters, gradients);
    optimizer->step();
  }
  State state = state_of(kind, *optimizer);
  expect_parameters_are(parameters, state.at("y"));
  return state;
}

TEST(Family, AveragedGradientsGiveTheSameBitsForEveryWorldAndBucketSize) {
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    if (!kind.is_of_elements) continue;
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const State alone = train(kind, self_communicator(), {}, dtype);
      for (const int64_t bytes : {1, 71 * 4, 25 << 20}) {
        const auto sharding = buckets_of(bytes).gradients(GradientInput::already_averaged);
        expect_same_bits(train(kind, world(), sharding, dtype), alone);
      }
    }
  }
}

TEST(Family, EvaluationAndSkippedStepsLeaveNoTrace) {
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    std::vector<State> states;
    for (const bool disturbed : {false, true}) {
      const Parameters parameters = make_parameters(odd_shapes());
      const OptimizerPointer optimizer = kind.make(parameters, world(), buckets_of(200));
      GradScaler scaler(GradScalerOptions().init_scale(1));
      for (int64_t step = 0; step < 5; ++step) {
        if (disturbed) {
          const State before = state_of(kind, *optimizer);
          {
            const auto evaluation = optimizer->eval_scope();
            const auto x = optimizer->full_state("x");
            expect_parameters_are(parameters, x);
          }
          expect_parameters_are(parameters, before.at("y"));
          Gradients overflow = random_gradients(parameters, 90, 0);
          overflow.at("p0")[3] = std::numeric_limits<double>::infinity();
          backward(parameters, overflow);
          EXPECT_FALSE(scaler.step(*optimizer));
          expect_same_bits(state_of(kind, *optimizer), before);
        }
        backward(parameters, random_gradients(parameters, step, world()->rank()));
        testing::step(*optimizer);
      }
      states.push_back(state_of(kind, *optimizer));
    }
    expect_same_bits(states[1], states[0]);
  }
}

TEST(Family, UnusedParametersAreLeftAlone) {
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    const Parameters parameters = make_parameters({{40}, {41}, {42}});
    const OptimizerPointer optimizer = kind.make(parameters, world(), ShardingOptions());
    backward(parameters, random_gradients(parameters, 0, world()->rank()));
    step(*optimizer);
    const State before = state_of(kind, *optimizer);
    Gradients gradients = random_gradients(parameters, 1, world()->rank());
    gradients.erase("p1");
    backward(parameters, gradients);
    step(*optimizer);
    for (const auto& [which, tensors] : state_of(kind, *optimizer)) {
      EXPECT_TRUE(same_bits(tensors.at("p1"), before.at(which).at("p1"))) << which;
      EXPECT_FALSE(same_bits(tensors.at("p0"), before.at(which).at("p0"))) << which;
    }
  }
}

// torch::optim::AdamW would divide by the corrections of a first step.
TEST(Family, AdamWCorrectsBiasByTheStepsOfTheGroup) {
  const Parameters parameters = make_parameters({{3}, {4}}, at::kDouble);
  const at::Tensor start = parameters[1].second.detach().clone();
  AdamW optimizer({ParameterGroup(parameters)}, world(), AdamWOptions(0.01).weight_decay(0.5));
  Gradients gradients = random_gradients(parameters, 0, 0);
  const at::Tensor g = gradients.at("p1");
  backward(parameters, {{"p0", gradients.at("p0")}});
  optimizer.step();
  backward(parameters, gradients);
  optimizer.step();
  const at::Tensor m = 0.1 * g / (1 - 0.9 * 0.9);
  const at::Tensor v = 0.001 * g * g / (1 - 0.999 * 0.999);
  const at::Tensor expected = start * (1 - 0.01 * 0.5) - 0.01 * m / (v.sqrt() + 1e-8);
  EXPECT_TRUE(at::allclose(optimizer.full_state("x").at("p1"), expected, 1e-12, 1e-14));
}

template <typename Options>
Options through_an_archive(const Options& options) {
  torch::serialize::OutputArchive out;
  options.serialize(out);
  std::stringstream file;
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  Options result;
  result.serialize(in);
  return result;
}

template <typename Options>
void expect_lr_of_a_clone(const Options& options) {
  const auto clone = static_cast<const torch::optim::OptimizerOptions&>(options).clone();
  EXPECT_EQ(clone->get_lr(), options.lr());
  clone->set_lr(0.125);
  EXPECT_EQ(dynamic_cast<const Options&>(*clone).lr(), 0.125);
  EXPECT_NE(options.lr(), 0.125);
}

TEST(FamilyOptions, SurviveSerialization) {
  const auto adamw = through_an_archive(AdamWScheduleFreeOptions(0.1)
                                            .betas({0.2, 0.3})
                                            .eps(0.4)
                                            .weight_decay(0.5)
                                            .warmup_steps(6)
                                            .r(0.7)
                                            .weight_lr_power(0.8)
                                            .refinement(9)
                                            .inner_momentum(0.95));
  EXPECT_EQ(adamw.refinement(), 9);
  EXPECT_EQ(adamw.inner_momentum(), 0.95);
  EXPECT_EQ(adamw.lr(), 0.1);
  EXPECT_EQ(adamw.betas(), std::make_tuple(0.2, 0.3));
  EXPECT_EQ(adamw.eps(), 0.4);
  EXPECT_EQ(adamw.weight_decay(), 0.5);
  EXPECT_EQ(adamw.warmup_steps(), 6);
  EXPECT_EQ(adamw.r(), 0.7);
  EXPECT_EQ(adamw.weight_lr_power(), 0.8);
  expect_lr_of_a_clone(adamw);

  const auto sgd = through_an_archive(
      SGDScheduleFreeOptions(0.1).momentum(0.2).weight_decay(0.3).warmup_steps(4).r(0.5).weight_lr_power(
          0.6));
  EXPECT_EQ(sgd.lr(), 0.1);
  EXPECT_EQ(sgd.momentum(), 0.2);
  EXPECT_EQ(sgd.weight_decay(), 0.3);
  EXPECT_EQ(sgd.warmup_steps(), 4);
  EXPECT_EQ(sgd.r(), 0.5);
  EXPECT_EQ(sgd.weight_lr_power(), 0.6);
  expect_lr_of_a_clone(sgd);

  const auto radam = through_an_archive(RAdamScheduleFreeOptions(0.1)
                                            .betas({0.2, 0.3})
                                            .eps(0.4)
                                            .weight_decay(0.5)
                                            .r(0.6)
                                            .weight_lr_power(0.7)
                                            .silent_sgd_phase(false));
  EXPECT_EQ(radam.lr(), 0.1);
  EXPECT_EQ(radam.betas(), std::make_tuple(0.2, 0.3));
  EXPECT_EQ(radam.eps(), 0.4);
  EXPECT_EQ(radam.weight_decay(), 0.5);
  EXPECT_EQ(radam.r(), 0.6);
  EXPECT_EQ(radam.weight_lr_power(), 0.7);
  EXPECT_FALSE(radam.silent_sgd_phase());
  expect_lr_of_a_clone(radam);

  const auto gpa = through_an_archive(GPAAdamWOptions(0.1)
                                          .betas({0.2, 0.3})
                                          .eps(0.4)
                                          .weight_decay(0.5)
                                          .train_interp_coeff(0.6)
                                          .eval_interp_coeff(0.7)
                                          .warmup_steps(8));
  EXPECT_EQ(gpa.lr(), 0.1);
  EXPECT_EQ(gpa.betas(), std::make_tuple(0.2, 0.3));
  EXPECT_EQ(gpa.eps(), 0.4);
  EXPECT_EQ(gpa.weight_decay(), 0.5);
  EXPECT_EQ(gpa.train_interp_coeff(), 0.6);
  EXPECT_EQ(gpa.eval_interp_coeff(), 0.7);
  EXPECT_EQ(gpa.warmup_steps(), 8);
  expect_lr_of_a_clone(gpa);

  const auto plus = through_an_archive(AdamWScheduleFreePlusOptions(0.1)
                                           .betas({0.2, 0.3})
                                           .sf_beta1(0.4)
                                           .sf_beta1_max(0.5)
                                           .sf_beta1_anneal_steps(6)
                                           .eps(0.7)
                                           .weight_decay(0.8)
                                           .r(0.9)
                                           .weight_lr_power(1.1)
                                           .polyak_beta(0.12)
                                           .c_warmup(13));
  EXPECT_EQ(plus.lr(), 0.1);
  EXPECT_EQ(plus.betas(), std::make_tuple(0.2, 0.3));
  EXPECT_EQ(plus.sf_beta1(), 0.4);
  EXPECT_EQ(plus.sf_beta1_max(), 0.5);
  EXPECT_EQ(plus.sf_beta1_anneal_steps(), 6);
  EXPECT_EQ(plus.eps(), 0.7);
  EXPECT_EQ(plus.weight_decay(), 0.8);
  EXPECT_EQ(plus.r(), 0.9);
  EXPECT_EQ(plus.weight_lr_power(), 1.1);
  EXPECT_EQ(plus.polyak_beta(), 0.12);
  EXPECT_EQ(plus.c_warmup(), 13);
  expect_lr_of_a_clone(plus);

  const auto plain_adamw = through_an_archive(AdamWOptions(0.1).betas({0.2, 0.3}).eps(0.4).weight_decay(0.5));
  EXPECT_EQ(plain_adamw.lr(), 0.1);
  EXPECT_EQ(plain_adamw.betas(), std::make_tuple(0.2, 0.3));
  EXPECT_EQ(plain_adamw.eps(), 0.4);
  EXPECT_EQ(plain_adamw.weight_decay(), 0.5);
  expect_lr_of_a_clone(plain_adamw);

  const auto plain_sgd = through_an_archive(SGDOptions(0.1).momentum(0.2).weight_decay(0.3).nesterov(true));
  EXPECT_EQ(plain_sgd.lr(), 0.1);
  EXPECT_EQ(plain_sgd.momentum(), 0.2);
  EXPECT_EQ(plain_sgd.weight_decay(), 0.3);
  EXPECT_TRUE(plain_sgd.nesterov());
  expect_lr_of_a_clone(plain_sgd);
}

template <typename Optimizer, typename Options>
void expect_refused(const Options& options, const std::string& part) {
  const Parameters parameters = make_parameters({{3}});
  expect_error([&] { Optimizer({ParameterGroup(parameters)}, world(), options); }, {part});
}

TEST(FamilyOptions, AreChecked) {
  expect_refused<AdamWScheduleFreePaper>(AdamWScheduleFreePaperOptions().betas({1.5, 0.9}), "beta1");
  expect_refused<SGDScheduleFree>(SGDScheduleFreeOptions(-1), "lr");
  expect_refused<SGDScheduleFree>(SGDScheduleFreeOptions().momentum(1.1), "momentum");
  expect_refused<SGDScheduleFree>(SGDScheduleFreeOptions().weight_decay(-1), "weight_decay");
  expect_refused<SGDScheduleFree>(SGDScheduleFreeOptions().warmup_steps(-1), "warmup_steps");
  expect_refused<RAdamScheduleFree>(RAdamScheduleFreeOptions().betas({0.9, 1}), "beta2");
  expect_refused<RAdamScheduleFree>(RAdamScheduleFreeOptions().eps(-1), "eps");
  expect_refused<AdamWScheduleFree>(AdamWScheduleFreeOptions().refinement(-1), "refinement");
  expect_refused<AdamWScheduleFree>(
      AdamWScheduleFreeOptions().refinement(5).betas({1, 0.9}), "refinement multiplies");
  expect_refused<AdamWScheduleFree>(AdamWScheduleFreeOptions().inner_momentum(1), "inner_momentum");
  expect_refused<GPAAdamW>(GPAAdamWOptions().betas({1, 0.9}), "beta1");
  expect_refused<GPAAdamW>(GPAAdamWOptions().train_interp_coeff(1.1), "train_interp_coeff");
  expect_refused<GPAAdamW>(GPAAdamWOptions().eval_interp_coeff(1), "eval_interp_coeff");
  expect_refused<AdamWScheduleFreePlus>(AdamWScheduleFreePlusOptions().sf_beta1(1.1), "sf_beta1");
  expect_refused<AdamWScheduleFreePlus>(
      AdamWScheduleFreePlusOptions().sf_beta1(1).sf_beta1_anneal_steps(3), "sf_beta1_max must be below 1");
  expect_refused<AdamWScheduleFreePlus>(AdamWScheduleFreePlusOptions().polyak_beta(1), "polyak_beta");
  expect_refused<AdamWScheduleFreePlus>(AdamWScheduleFreePlusOptions().c_warmup(-1), "c_warmup");
  expect_refused<AdamW>(AdamWOptions().betas({1, 0.9}), "beta1");  // it would never move
  expect_refused<AdamW>(AdamWOptions().weight_decay(-1), "weight_decay");
  expect_refused<SGD>(SGDOptions().momentum(-1), "momentum");
  expect_refused<SGD>(SGDOptions().nesterov(true), "nesterov needs a momentum");
  const Parameters parameters = make_parameters({{3}});
  expect_error([&] { SGD({ParameterGroup(parameters, AdamWOptions())}, world()); },
      {"parameter group 0", "options of another optimizer", "SGDOptions"});
}

}  // namespace
}  // namespace zerosched::testing
