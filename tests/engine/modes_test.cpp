// Train mode (parameters are y), eval mode (x), and what a module sees of it all.
#include "engine/toy.h"
#include "support/world.h"

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/serialize.h>

#include <sstream>
#include <stdexcept>

namespace zerosched::testing {
namespace {

struct NetImpl : torch::nn::Cloneable<NetImpl> {
  NetImpl() { reset(); }
  void reset() override {
    first = register_module("first", torch::nn::Linear(9, 12));
    second = register_module("second", torch::nn::Linear(12, 4));
    mean = register_buffer("mean", at::zeros({4}));
  }
  torch::nn::Linear first{nullptr}, second{nullptr};
  at::Tensor mean;
};
TORCH_MODULE(Net);

std::map<std::string, at::Tensor> values_of(const NamedParameters& parameters) {
  std::map<std::string, at::Tensor> values;
  for (const auto& [name, parameter] : parameters) values[name] = parameter.detach().clone();
  return values;
}

std::map<std::string, at::Tensor> cast(std::map<std::string, at::Tensor> values, at::ScalarType dtype) {
  for (auto& named : values) named.second = named.second.to(dtype);
  return values;
}

void train(const NamedParameters& parameters, ShardedOptimizer& optimizer, int steps, int64_t first = 0) {
  for (int64_t step = first; step < first + steps; ++step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer.step();
  }
}

TEST(Modes, EvalScopeShowsXAndBringsYBackBitForBit) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const NamedParameters parameters = make_parameters(odd_shapes(), dtype);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, buckets_of(300));
    for (int round = 0; round < 3; ++round) {
      train(parameters, optimizer, 2, 2 * round);
      const auto y = values_of(parameters);
      const auto x = cast(optimizer.full_state("x"), dtype);
      {
        const auto evaluation = optimizer.eval_scope();
        EXPECT_FALSE(optimizer.training());
        expect_parameters_are(parameters, x);
        EXPECT_FALSE(same_bits(parameters[3].second, y.at("p3")));
        {
          const auto nested = optimizer.eval_scope();
          expect_parameters_are(parameters, x);
        }
        EXPECT_FALSE(optimizer.training()) << "the outer scope goes on";
        expect_parameters_are(parameters, x);
        const State state = full_state(optimizer);  // gathered at x too
        for (const auto& [name, value] : y) EXPECT_TRUE(same_bits(state.at("y").at(name), value)) << name;
      }
      EXPECT_TRUE(optimizer.training());
      expect_parameters_are(parameters, y);
    }
  }
}

TEST(Modes, EvaluationsLeaveTrainingAsItIs) {
  std::vector<State> states;
  for (const bool evaluate : {false, true}) {
    const NamedParameters parameters = make_parameters(odd_shapes());
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
    for (int step = 0; step < 4; ++step) {
      if (evaluate) const auto evaluation = optimizer.eval_scope();
      train(parameters, optimizer, 1, step);
    }
    states.push_back(full_state(optimizer));
  }
  expect_same_bits(states[0], states[1]);
}

TEST(Modes, ExtremesOfBeta1) {
  for (const double beta1 : {0.0, 1.0}) {
    const NamedParameters parameters = make_parameters(odd_shapes());
    Reference::Options options;
    options.beta1 = beta1;
    Reference reference(parameters, options);
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions().betas({beta1, 0.999}));
    for (int64_t step = 0; step < 5; ++step) {
      backward(parameters, random_gradients(parameters, step, 0));
      optimizer.step();
      reference.step(random_gradients(parameters, step, 0));
      const auto evaluation = optimizer.eval_scope();
    }
    const State state = full_state(optimizer);
    expect_close(state, reference, 1e-5);
    expect_parameters_are(parameters, state.at(beta1 == 0 ? "z" : "x"));
  }
}

TEST(Modes, AnExceptionLeavesEvalModeAndTrainBringsYBack) {
  const NamedParameters parameters = make_parameters({{20}, {30}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  train(parameters, optimizer, 2);
  const auto y = values_of(parameters);
  const Traffic before = optimizer.communicator()->traffic();
  int64_t gathers_in_scope = 0;
  EXPECT_THROW(
      {
        const auto evaluation = optimizer.eval_scope();
        gathers_in_scope = optimizer.communicator()->traffic().all_gather.calls;
        throw std::runtime_error("evaluation failed");
      },
      std::runtime_error);
  EXPECT_GT(gathers_in_scope, before.all_gather.calls);
  EXPECT_EQ(optimizer.communicator()->traffic().all_gather.calls, gathers_in_scope)
      << "no collective in a destructor";
  EXPECT_FALSE(optimizer.training());
  optimizer.train();
  expect_parameters_are(parameters, y);
  train(parameters, optimizer, 1);
}

TEST(Modes, SwitchingTwiceIsSwitchingOnce) {
  const NamedParameters parameters = make_parameters({{20}, {30}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  train(parameters, optimizer, 2);
  const auto calls = [&] { return optimizer.communicator()->traffic().all_gather.calls; };
  int64_t before = calls();
  optimizer.train();
  EXPECT_EQ(calls(), before);
  optimizer.eval();
  before = calls();
  optimizer.eval();
  EXPECT_EQ(calls(), before);
  auto scope = optimizer.eval_scope();  // already there: its end changes nothing
  { const auto moved = std::move(scope); }
  EXPECT_FALSE(optimizer.training());
  optimizer.train();
}

TEST(Modes, AMovedScopeEndsOnce) {
  const NamedParameters parameters = make_parameters({{20}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  {
    auto scope = optimizer.eval_scope();
    { const auto moved = std::move(scope); }
    EXPECT_TRUE(optimizer.training());
    optimizer.eval();
  }
  EXPECT_FALSE(optimizer.training());
}

TEST(Modes, EveryRankStartsFromRankZero) {
  Net net;
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor parameter : net->parameters()) parameter.fill_(world()->rank() + 0.5);
    net->mean.fill_(world()->rank() + 0.25);
  }
  AdamWScheduleFree optimizer(*net, world());
  for (const at::Tensor& parameter : net->parameters()) EXPECT_TRUE(parameter.eq(0.5).all().item<bool>());
  EXPECT_TRUE(net->mean.eq(0.25).all().item<bool>());
  for (const char* which : {"z", "x", "y"}) {
    for (const auto& [name, tensor] : optimizer.full_state(which))
      EXPECT_TRUE(tensor.eq(0.5).all().item<bool>()) << name;
  }
  for (const auto& [name, tensor] : optimizer.full_state("v"))
    EXPECT_TRUE(tensor.eq(0).all().item<bool>()) << name;
}

TEST(Modes, SavingInEvalScopeWritesXAndNoMoreThanTheParameters) {
  Net net;
  AdamWScheduleFree optimizer(*net, world());
  const NamedParameters parameters = parameters_of(*net);
  train(parameters, optimizer, 3);
  std::ostringstream whole, single;
  {
    const auto evaluation = optimizer.eval_scope();
    torch::save(net, whole);
    torch::save(net->second->bias.detach(), single);
  }
  EXPECT_LT(single.str().size(), 4000U) << "16 bytes of data, not its bucket";
  Net loaded;
  std::istringstream in(whole.str());
  torch::load(loaded, in);
  const auto x = optimizer.full_state("x");
  for (const auto& [name, parameter] : parameters_of(*loaded))
    EXPECT_TRUE(same_bits(parameter, x.at(name))) << name;
}

TEST(Modes, AClonedModuleIsIndependent) {
  Net net;
  AdamWScheduleFree optimizer(*net, world());
  train(parameters_of(*net), optimizer, 1);
  const auto before = values_of(parameters_of(*net));
  const auto copy = std::dynamic_pointer_cast<NetImpl>(net->clone());
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor parameter : copy->parameters()) parameter.zero_();
  }
  expect_parameters_are(parameters_of(*net), before);
  train(parameters_of(*net), optimizer, 1, 1);
  for (const at::Tensor& parameter : copy->parameters()) EXPECT_TRUE(parameter.eq(0).all().item<bool>());
}

TEST(Modes, TheEndOfTheOptimizerGivesParametersOrdinaryStorage) {
  for (const bool at_x : {false, true}) {
    Net net;
    const NamedParameters parameters = parameters_of(*net);
    std::map<std::string, at::Tensor> values;
    {
      AdamWScheduleFree optimizer(*net, world());
      train(parameters, optimizer, 2);
      if (at_x) optimizer.eval();
      values = values_of(parameters);
    }
    expect_parameters_are(parameters, values);
    const Gradients gradients = random_gradients(parameters, 9, 0);
    backward(parameters, gradients);
    for (const auto& [name, parameter] : parameters) {
      EXPECT_EQ(parameter.storage().nbytes(), parameter.nbytes()) << name;
      EXPECT_TRUE(parameter.storage().resizable()) << name;
      EXPECT_TRUE(parameter.is_leaf() && parameter.requires_grad());
      EXPECT_TRUE(same_bits(parameter.grad(), gradients.at(name))) << "hooks are gone: " << name;
    }
  }
}

TEST(Modes, OptimizersCanFollowEachOther) {
  const NamedParameters parameters = make_parameters(odd_shapes());
  for (int life = 0; life < 3; ++life) {
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
    Reference reference(parameters);
    for (int64_t step = 0; step < 3; ++step) {
      backward(parameters, random_gradients(parameters, step, 0));
      optimizer.step();
      reference.step(random_gradients(parameters, step, 0));
    }
    expect_close(full_state(optimizer), reference);
  }
}

TEST(Modes, ResetAfterLoadAndEdits) {
  Net net, other;
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor parameter : other->parameters()) parameter.fill_(world()->rank() + 2.0);
  }
  const NamedParameters parameters = parameters_of(*net);
  std::stringstream file;
  torch::save(other, file);
  AdamWScheduleFree optimizer(*net, world(), AdamWScheduleFreeOptions(0.01));
  Reference::Options options;
  options.lr = 0.01;
  Reference reference(parameters, options);
  const auto both_step = [&](int64_t step) {
    train(parameters, optimizer, 1, step);
    reference.step(
        mean_gradients(world()->size(), [&](int rank) { return random_gradients(parameters, step, rank); }));
  };
  both_step(0);
  both_step(1);
  const auto v = optimizer.full_state("v");

  torch::load(net, file);  // 2.0 on rank 0, something else on the others
  optimizer.reset_from_parameters();
  for (const auto& [name, parameter] : parameters) {
    EXPECT_TRUE(parameter.eq(2.0).all().item<bool>()) << name;
    reference.reset(name, at::full(parameter.sizes(), 2.0));
  }
  const State state = full_state(optimizer);
  for (const char* which : {"z", "x", "y"}) expect_parameters_are(parameters, state.at(which));
  for (const auto& [name, tensor] : v)
    EXPECT_TRUE(same_bits(state.at("v").at(name), tensor)) << "v is kept: " << name;
  both_step(2);
  both_step(3);
  expect_close(full_state(optimizer), reference);

  {
    const at::NoGradGuard no_grad;
    if (world()->rank() == 0) net->first->weight.add_(1);
  }
  reference.reset("first.weight", reference.y("first.weight") + 1);
  for (const auto& [name, parameter] : parameters) {
    if (name != "first.weight") reference.reset(name, reference.y(name));
  }
  optimizer.reset_from_parameters();
  both_step(4);
  expect_close(full_state(optimizer), reference);
  { const auto evaluation = optimizer.eval_scope(); }
}

TEST(Modes, ResetRefusesAnotherDtypeAndTakesTheOldOneBack) {
  Net net;
  AdamWScheduleFree optimizer(*net, world());
  train(parameters_of(*net), optimizer, 1);
  net->to(at::kDouble);
  expect_error(
      [&] { optimizer.reset_from_parameters(); }, {"parameter 'first.weight'", "dtype", "new optimizer"});
  net->to(at::kFloat);
  optimizer.reset_from_parameters();
  const NamedParameters parameters = parameters_of(*net);
  backward(parameters, random_gradients(parameters, 1, world()->rank()));
  for (const auto& [name, parameter] : parameters)
    EXPECT_FALSE(parameter.grad().defined()) << "no hook on " << name;
  optimizer.step();
  expect_parameters_are(parameters, optimizer.full_state("y"));
}

}  // namespace
}  // namespace zerosched::testing
