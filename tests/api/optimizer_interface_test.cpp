// What code written for torch::optim::Optimizer and torch::nn::Module does to a sharded optimizer.
#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"

#include <torch/nn/modules/linear.h>
#include <torch/optim/schedulers/reduce_on_plateau_scheduler.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <cmath>
#include <sstream>

namespace zerosched::testing {
namespace {

const std::vector<std::vector<int64_t>> kShapes = {{40}, {41}, {42}};

Gradients mean_of_random(const NamedParameters& parameters, int64_t step) {
  return mean_gradients(world()->size(), [&](int rank) { return random_gradients(parameters, step, rank); });
}

void train_step(const NamedParameters& parameters, torch::optim::Optimizer& optimizer, int64_t step) {
  backward(parameters, random_gradients(parameters, step, world()->rank()));
  optimizer.step();
}

TEST(Interface, ParametersAddedThroughTheBaseClassAreRefused) {
  using Add = std::function<void(torch::optim::Optimizer&, const at::Tensor&)>;
  const Add add_group = [](torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
    optimizer.add_param_group(torch::optim::OptimizerParamGroup({parameter}));
  };
  const Add add_parameter = [](torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
    optimizer.add_parameters({parameter});
  };
  for (const auto& [add, text] : {std::pair(add_group, "there are 2 parameter groups"),
           std::pair(add_parameter, "parameter group 0 has 4 parameters")}) {
    const NamedParameters parameters = make_parameters(kShapes);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
    train_step(parameters, optimizer, 0);
    world_barrier();  // or a quick rank's error would reach slow ones in that step
    if (world()->rank() == 0) add(optimizer, at::zeros({5}).requires_grad_());  // on one rank: all hear of it
    backward(parameters, random_gradients(parameters, 1, world()->rank()));
    expect_error([&] { optimizer.step(); }, {std::string("rank 0: ") + text, "vector of ParameterGroup"});
  }
}

/// lr of each group by a rule of its own, as trainers write them.
class WarmRestarts final : public torch::optim::LRScheduler {
 public:
  explicit WarmRestarts(torch::optim::Optimizer& optimizer)
      : LRScheduler(optimizer), initial_(get_current_lrs()) {}

 private:
  std::vector<double> get_lrs() override {
    std::vector<double> lrs = initial_;
    for (double& lr : lrs) lr *= 0.5 * (1 + std::cos(M_PI * (step_count_ % 4) / 4));
    return lrs;
  }
  std::vector<double> initial_;
};

TEST(Interface, AnySchedulerChangesTheLrOfEveryGroup) {
  for (const bool plateau : {false, true}) {
    const NamedParameters all = make_parameters({{30}, {31}});
    const NamedParameters a = {all[0]}, b = {all[1]};
    Reference expected_a(a), expected_b(b);
    AdamWScheduleFree optimizer({ParameterGroup(a, AdamWScheduleFreeOptions(0.02)),
                                    ParameterGroup(b, AdamWScheduleFreeOptions(0.005))},
        world());
    // What the scheduler does to a plain optimizer is what it must do to ours.
    torch::optim::SGD plain(
        std::vector<torch::optim::OptimizerParamGroup>{
            {{at::zeros({1}).requires_grad_()}, std::make_unique<torch::optim::SGDOptions>(0.02)},
            {{at::zeros({1}).requires_grad_()}, std::make_unique<torch::optim::SGDOptions>(0.005)}},
        torch::optim::SGDOptions(1));
    WarmRestarts restarts(optimizer), plain_restarts(plain);
    using Plateau = torch::optim::ReduceLROnPlateauScheduler;
    Plateau on_plateau(optimizer, Plateau::min, 0.5F, /*patience=*/1);
    Plateau plain_on_plateau(plain, Plateau::min, 0.5F, /*patience=*/1);
    double least = 1;
    for (int64_t step = 0; step < 8; ++step) {
      train_step(all, optimizer, step);
      const Gradients mean = mean_of_random(all, step);
      const double lr = plain.param_groups()[0].options().get_lr();
      expected_a.lr(lr);
      expected_b.lr(plain.param_groups()[1].options().get_lr());
      expected_a.step({{"p0", mean.at("p0")}});
      expected_b.step({{"p1", mean.at("p1")}});
      least = std::min(least, lr);
      if (plateau) {
        on_plateau.step(1.0F);
        plain_on_plateau.step(1.0F);
      } else {
        restarts.step();
        plain_restarts.step();
      }
    }
    EXPECT_LT(least, 0.011) << "the scheduler did nothing";
    for (const auto& [which, tensors] : full_state(optimizer)) {
      expect_close({{which, {{"p0", tensors.at("p0")}}}}, expected_a);
      expect_close({{which, {{"p1", tensors.at("p1")}}}}, expected_b);
    }
  }
}

TEST(Interface, AnLrOfZeroMovesNothing) {
  const NamedParameters parameters = make_parameters(kShapes);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(0));
  const State before = full_state(optimizer);
  for (int64_t step = 0; step < 3; ++step) train_step(parameters, optimizer, step);
  State after = full_state(optimizer);
  for (const char* which : {"z", "x", "y"}) EXPECT_EQ(after.at(which).size(), before.at(which).size());
  after.at("v") = before.at("v");  // the second moment goes on
  expect_same_bits(after, before);
  optimizer.param_groups()[0].options().set_lr(0.01);
  train_step(parameters, optimizer, 3);
  for (const auto& [name, x] : optimizer.full_state("x")) {
    EXPECT_TRUE(same_bits(x, optimizer.full_state("z").at(name)))
        << "the first step of weight is the average";
  }
}

// The usual loop through a reference to the base class: nothing is in flight when it zeroes.
TEST(Interface, ZeroGradThroughTheBaseClassBetweenSteps) {
  for (const bool set_to_none : {true, false}) {
    for (const bool overlap : {true, false}) {
      const NamedParameters parameters = make_parameters(kShapes);
      Reference reference(parameters);
      AdamWScheduleFree optimizer(
          {ParameterGroup(parameters)}, world(), {}, buckets_of(1).overlap_backward(overlap));
      torch::optim::Optimizer& plain = optimizer;
      for (int64_t step = 0; step < 4; ++step) {
        plain.zero_grad(set_to_none);
        train_step(parameters, plain, step);
        reference.step(mean_of_random(parameters, step));
      }
      {  // what no_sync() has accumulated in .grad is dropped too
        const auto hold = optimizer.no_sync();
        backward(parameters, random_gradients(parameters, 99, world()->rank()));
      }
      plain.zero_grad(set_to_none);
      train_step(parameters, plain, 4);
      reference.step(mean_of_random(parameters, 4));
      expect_close(full_state(optimizer), reference);
    }
  }
}

TEST(Interface, AParameterMayBeFrozenForAWhile) {
  for (const bool overlap : {true, false}) {
    const NamedParameters parameters = make_parameters(kShapes);
    Reference reference(parameters);
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), {}, buckets_of(1).overlap_backward(overlap));
    for (int64_t step = 0; step < 6; ++step) {
      const bool frozen = step == 2 || step == 3;
      parameters[1].second.set_requires_grad(!frozen);
      optimizer.zero_grad();
      train_step(parameters, optimizer, step);
      Gradients mean = mean_of_random(parameters, step);
      if (frozen) mean.erase("p1");
      reference.step(mean);
    }
    expect_close(full_state(optimizer), reference);
  }
}

TEST(Interface, ParametersWithoutElements) {
  const NamedParameters parameters = make_parameters({{0}, {4, 0, 2}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  for (int64_t step = 0; step < 2; ++step) train_step(parameters, optimizer, step);
  EXPECT_EQ(optimizer.full_state("x").at("p1").sizes(), (std::vector<int64_t>{4, 0, 2}));
  const auto evaluation = optimizer.eval_scope();
}

/// A module, its optimizer after a step, and a file with other weights.
struct Wrapped {
  torch::nn::Linear net{9, 4};
  NamedParameters parameters = parameters_of(*net);
  AdamWScheduleFree optimizer{*net, world()};
  std::stringstream file;

  Wrapped() {
    const torch::nn::Linear other(9, 4);
    torch::save(other, file);
    train_step(parameters, optimizer, 0);
    world_barrier();  // or a quick rank's error would reach slow ones in that step
  }
};

TEST(Interface, LoadingIntoTheModuleIsSeen) {
  {
    Wrapped run;
    torch::load(run.net, run.file);
    backward(run.parameters, random_gradients(run.parameters, 1, 0));
    expect_error(
        [&] { run.optimizer.step(); }, {"parameter 'weight'", "torch::load", "reset_from_parameters()"});
  }
  Wrapped run;
  const int last = world()->size() - 1;
  if (world()->rank() == last) torch::load(run.net, run.file);  // on one rank: all hear of it
  const std::string who = "rank " + std::to_string(last) + ": parameter 'weight'";
  expect_error([&] { run.optimizer.eval(); }, {who, "torch::load", "reset_from_parameters()"});
  run.optimizer.reset_from_parameters();
  train_step(run.parameters, run.optimizer, 1);
}

TEST(Interface, MovingTheModuleIsSeen) {
  Wrapped run;
  run.net->to(at::kFloat);  // where it is already
  run.net->to(at::kCPU);
  train_step(run.parameters, run.optimizer, 1);
  run.net->to(at::kDouble);
  expect_error([&] { run.optimizer.eval(); }, {"parameter 'weight'", "module->to()", "new optimizer"});
  world_barrier();
  expect_error([&] { run.optimizer.step(); }, {"parameter 'weight'", "module->to()", "new optimizer"});
}

TEST(Interface, TorchSaveAndLoadPointAtCheckpoints) {
  Wrapped run;
  std::ostringstream out;
  expect_error([&] { torch::save(run.optimizer, out); }, {"this rank's shard", "save_checkpoint(dir)"});
  expect_error(
      [&] { torch::load(run.optimizer, run.file); }, {"load_checkpoint(dir)", "reset_from_parameters()"});
  train_step(run.parameters, run.optimizer, 1);
}

struct WithBufferImpl : torch::nn::Module {
  WithBufferImpl() {
    trained = register_module("trained", torch::nn::Linear(5, 4));
    frozen = register_module("frozen", torch::nn::Linear(3, 2));
    for (at::Tensor parameter : frozen->parameters()) parameter.set_requires_grad(false);
    mean = register_buffer("mean", at::zeros({4}));
  }
  torch::nn::Linear trained{nullptr}, frozen{nullptr};
  at::Tensor mean;
};
TORCH_MODULE(WithBuffer);

// Weights that rank 0 alone has loaded are everybody's, those without a gradient included.
TEST(Interface, ResetTakesAllOfRankZero) {
  WithBuffer net;
  const NamedParameters trained = parameters_of(*net->trained);
  AdamWScheduleFree optimizer(*net, world());
  train_step(trained, optimizer, 0);
  const auto fill = [&](double value) {
    const at::NoGradGuard no_grad;
    for (at::Tensor parameter : net->parameters()) parameter.fill_(value);
    net->mean.fill_(value);
  };
  if (world()->rank() == 0) fill(3);
  optimizer.reset_from_parameters();
  for (const at::Tensor& tensor : net->parameters()) EXPECT_TRUE(tensor.eq(3).all().item<bool>());
  EXPECT_TRUE(net->mean.eq(3).all().item<bool>());
  train_step(trained, optimizer, 1);
}

TEST(Interface, ResetInEvalModeStartsYThere) {
  const NamedParameters parameters = make_parameters(kShapes);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  for (int64_t step = 0; step < 3; ++step) train_step(parameters, optimizer, step);
  std::map<std::string, at::Tensor> x;
  {
    const auto evaluation = optimizer.eval_scope();
    {
      const at::NoGradGuard no_grad;
      for (const auto& [name, parameter] : parameters) x[name] = at::Tensor(parameter).mul_(2).clone();
    }
    optimizer.reset_from_parameters();
    EXPECT_FALSE(optimizer.training());
    expect_parameters_are(parameters, x);
  }
  expect_parameters_are(parameters, x);
  for (const char* which : {"z", "x", "y"}) expect_parameters_are(parameters, optimizer.full_state(which));
  train_step(parameters, optimizer, 3);
}

}  // namespace
}  // namespace zerosched::testing
