// What all the optimizers have in common, and their options. Their arithmetic is compared in tests/parity.
#include "api/optimizers.h"
#include "engine/toy.h"
#include "support/world.h"

#include <zerosched/zerosched.h>

#include <limits>
#include <utility>

namespace zerosched::testing {
namespace {

using Parameters = NamedParameters;
using CommunicatorPointer = std::shared_ptr<Communicator>;
using OptimizerPointer = std::unique_ptr<ShardedOptimizer>;

using Settings = std::vector<std::pair<std::string, double>>;

/// An optimizer with some options.
struct Kind {
  std::string name;
  std::shared_ptr<ListedOptions> options;
  std::vector<std::string> state;
  /// Whether a step is of each element alone, and not of sums over all, which come in another order at another world size.
  bool is_of_elements;

  Kind(const std::string& optimizer, const Settings& settings)
      : name(optimizer), options(default_options(optimizer)) {
    for (const auto& [option, value] : Settings{{"lr", 0.01}, {"weight_decay", 0.1}, {"warmup_steps", 3}})
      options->set(option, value);
    for (const auto& [option, value] : settings) EXPECT_TRUE(options->set(option, value)) << option;
    const auto algorithm = detail::optimizer_entry(optimizer).algorithm();
    algorithm->settle({options.get()});
    for (const auto& tensor : algorithm->state()) state.push_back(tensor.name);
    state.emplace_back("y");
    is_of_elements = !algorithm->takes_loss();
  }

  OptimizerPointer make(const Parameters& parameters, const CommunicatorPointer& communicator,
      const ShardingOptions& sharding) const {
    return make_optimizer(name, {ParameterGroup(parameters)}, communicator, *options, sharding);
  }
};

/// With a loss for those that take one.
void step(ShardedOptimizer& optimizer) {
  auto* by_loss = dynamic_cast<AdamWScheduleFreePlus*>(&optimizer);
  by_loss == nullptr ? static_cast<void>(optimizer.step()) : by_loss->step(at::full({}, 0.5));
}

/// Every optimizer, and those again of whose arithmetic other options use more.
const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = [] {
    std::vector<Kind> kinds;
    for (const std::string& name : optimizer_names()) kinds.emplace_back(name, Settings{});
    kinds.emplace_back("RAdamScheduleFree", Settings{{"silent_sgd_phase", 0}});
    kinds.emplace_back("SGDScheduleFree", Settings{{"lr", 0.1}});
    kinds.emplace_back("AdamWScheduleFree", Settings{{"inner_momentum", 0.8}, {"refinement", 5}});
    kinds.emplace_back("GPAAdamW", Settings{{"eval_interp_coeff", 0.9}});
    kinds.emplace_back("AdamWScheduleFreePlus",
        Settings{{"lr", 1}, {"weight_decay", 20}, {"polyak_beta", 0.5}, {"sf_beta1_anneal_steps", 4}});
    kinds.emplace_back("SGD", Settings{{"lr", 0.1}, {"momentum", 0.9}, {"nesterov", 1}});
    return kinds;
  }();
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
    constexpr int64_t kSilentSteps = 6;  // of RAdam
    for (int64_t i = 0; i < kSilentSteps; ++i) {
      optimizer->zero_grad();
      backward(parameters, random_gradients(parameters, i, world()->rank()));
      step(*optimizer);
    }
    const State before = state_of(kind, *optimizer);
    optimizer->zero_grad();
    Gradients gradients = random_gradients(parameters, kSilentSteps, world()->rank());
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

TEST(FamilyOptions, AreListedAndCopied) {
  for (const std::string& name : optimizer_names()) {
    SCOPED_TRACE(name);
    const auto options = default_options(name);
    double next = 0.25;
    for (const auto& [option, value] : options->values()) {
      EXPECT_TRUE(options->set(option, next)) << option;
      next /= 2;
    }
    next = 0.25;
    const auto copy = static_cast<const torch::optim::OptimizerOptions&>(*options).clone();
    for (const auto& [option, value] : static_cast<ListedOptions&>(*copy).values()) {
      EXPECT_TRUE(value == next || value == 0 || value == 1)
          << option << ": " << value;  // integers and flags
      next /= 2;
    }
    EXPECT_EQ(copy->get_lr(), 0.25);
    copy->set_lr(0.125);
    EXPECT_EQ(copy->get_lr(), 0.125);
    EXPECT_EQ(options->get_lr(), 0.25);
    EXPECT_FALSE(options->set("learning_rate", 1));
  }
}

TEST(FamilyOptions, AreThoseOfTheClasses) {
  AdamWScheduleFreeOptions options;
  EXPECT_TRUE(options.set("beta2", 0.75));
  EXPECT_EQ(std::get<1>(options.betas()), 0.75);
  EXPECT_TRUE(options.set("warmup_steps", 12));
  EXPECT_EQ(options.warmup_steps(), 12);
  EXPECT_EQ(options.lr(0.5).r(2).get_lr(), 0.5);
  EXPECT_EQ(SGDOptions(0.1).momentum(0.2).nesterov(true).values(),
      (Settings{{"lr", 0.1}, {"momentum", 0.2}, {"weight_decay", 0}, {"nesterov", 1}}));
}

TEST(FamilyNames, CountByTheirLetters) {
  const Parameters parameters = make_parameters({{3}});
  const auto optimizer = make_optimizer(
      "adamw-schedulefree", {ParameterGroup(parameters)}, world(), *default_options("ADAMWSCHEDULEFREE"));
  EXPECT_NE(dynamic_cast<AdamWScheduleFree*>(optimizer.get()), nullptr);
  expect_error([] { default_options("adam"); }, {"no optimizer 'adam'", "AdamWScheduleFree, ", "SGD."});
  expect_error([&] { make_optimizer("SGD", {ParameterGroup(parameters)}, world(), AdamWOptions()); },
      {"options are of another optimizer"});
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
