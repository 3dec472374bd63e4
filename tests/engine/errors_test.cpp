// What users do wrong, and what every rank tells them. Ranks that fail alone are in tests/faults.
#include "engine/passing_communicator.h"
#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"

#include <chrono>
#include <limits>
#include <string>

namespace zerosched::testing {
namespace {

class Errors : public ::testing::Test {
 protected:
  const int size = world()->size();
  const int rank = world()->rank();
  const NamedParameters parameters = make_parameters({{40}, {41}, {42}});

  std::unique_ptr<AdamWScheduleFree> make(const ShardingOptions& sharding = buckets_of(1)) {
    auto optimizer =
        std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)}, world(),
            AdamWScheduleFreeOptions(), sharding);
    world_barrier();  // or a quick rank's error would reach slow ones in their constructor
    return optimizer;
  }
  void run_backward(int64_t step = 0) { backward(parameters, random_gradients(parameters, step, rank)); }
};

TEST_F(Errors, StepInEvalMode) {
  const auto optimizer = make();
  optimizer->eval();
  expect_error([&] { optimizer->step(); }, {"step() in eval mode", "Call train()"});
  bool called = false;
  expect_error(
      [&] {
        optimizer->step([&] {
          called = true;
          return at::zeros({});
        });
      },
      {"step() in eval mode"});
  EXPECT_FALSE(called);
  optimizer->train();
  run_backward();
  optimizer->step();
}

TEST_F(Errors, BackwardInEvalMode) {
  const auto optimizer = make();
  optimizer->eval();
  if (rank == size - 1) run_backward();  // one rank alone: all hear of it
  expect_error([&] { optimizer->train(); },
      {"rank " + std::to_string(size - 1), "parameter 'p2'", "eval mode", "zero_grad()"});
  optimizer->zero_grad();
  optimizer->train();
  run_backward();
  optimizer->step();
}

TEST_F(Errors, BackwardInEvalScope) {
  const auto optimizer = make();
  expect_error(
      [&] {
        const auto evaluation = optimizer->eval_scope();
        run_backward();
      },
      {"a gradient of parameter 'p2' arrived in eval mode"});
  EXPECT_FALSE(optimizer->training());
  optimizer->zero_grad();
  optimizer->train();
}

TEST_F(Errors, ASecondBackwardWithoutNoSync) {
  for (const int64_t bytes : {1, 1 << 20}) {
    const auto optimizer = make(buckets_of(bytes));
    run_backward(0);
    run_backward(1);  // hooks do not throw
    const std::vector<std::string> parts = {
        "gradient of parameter 'p2' arrived twice", "no_sync()", "overlap_backward(false)"};
    expect_error([&] { optimizer->step(); }, parts);
    expect_error([&] { optimizer->zero_grad(); }, parts);
    expect_error([&] { optimizer->eval(); }, parts);
    expect_error([&] { optimizer->full_state("x"); }, parts);
  }
}

TEST_F(Errors, ASecondBackwardOnOneRankAlone) {
  const auto optimizer = make();
  run_backward(0);
  if (rank == 0) run_backward(1);
  expect_error([&] { optimizer->step(); }, {"rank 0: the gradient of parameter 'p2' arrived twice"});
}

TEST_F(Errors, DifferentFunctionsAreNamed) {
  if (size == 1) return;
  const auto optimizer = make();
  expect_error([&] { rank == 0 ? optimizer->eval() : optimizer->reset_from_parameters(); },
      {"rank 0 is in all_reduce", "'eval()', rank ", "'reset_from_parameters()'",
          "every rank must call the same collectives in the same order"});
}

// Runs out of memory, on rank 1 alone, before the collective of that name.
class Exhausted final : public PassingCommunicator {
 public:
  Exhausted(std::shared_ptr<Communicator> inner, std::shared_ptr<std::string> before)
      : PassingCommunicator(std::move(inner)), before_(std::move(before)) {}
  std::shared_ptr<Communicator> duplicate() override {
    return std::make_shared<Exhausted>(inner().duplicate(), before_);
  }

 private:
  void launching(Collective, const CollectiveLabel& label) override {
    if (rank() == 1 && *before_ == label.what) throw std::bad_alloc();
  }
  std::shared_ptr<std::string> before_;
};

TEST_F(Errors, WhatOneRankAloneRunsOutOfIsEveryonesError) {
  if (size == 1) return;
  const auto before = std::make_shared<std::string>("initial values");
  const auto start = std::chrono::steady_clock::now();
  const auto construct = [&] {
    return std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)},
        std::make_shared<Exhausted>(world()->duplicate(), before), AdamWScheduleFreeOptions(), buckets_of(1));
  };
  expect_error([&] { construct(); }, {"rank 1: std::bad_alloc"});
  for (const char* name : {"z", "gradient norms"}) {
    *before = "";
    const auto optimizer = construct();
    run_backward();
    optimizer->step();
    world_barrier();
    *before = name;
    expect_error(
        [&] {
          if (*before == "z") optimizer->full_state("z");
          optimizer->grad_norms();
        },
        {"rank 1: std::bad_alloc"});
    world_barrier();
  }
  EXPECT_LT(
      std::chrono::steady_clock::now() - start, std::chrono::seconds(15));  // not the 20 s of the timeout
}

TEST_F(Errors, ReplacedParameters) {
  const auto replace = [this](const std::function<void(at::Tensor)>& change) {
    const auto optimizer = make();
    run_backward();
    change(parameters[1].second);
    expect_error([&] { optimizer->step(); },
        {"parameter 'p1' was given other storage", "reset_from_parameters()", "new optimizer"});
  };
  replace([](at::Tensor p) { p.set_data(at::ones_like(p)); });
  replace([](at::Tensor p) { p.set_data(p.detach().to(at::kDouble)); });  // as module->to(kDouble) does
}

TEST_F(Errors, EditedParameters) {
  const auto optimizer = make();
  run_backward();
  if (rank == 0) {
    const at::NoGradGuard no_grad;
    at::Tensor(parameters[1].second).clamp_(-0.1, 0.1);
  }
  expect_error([&] { optimizer->step(); }, {"rank 0: parameter 'p1' was written", "reset_from_parameters()"});
}

TEST_F(Errors, EditedParametersBeforeEval) {
  const auto optimizer = make();
  if (rank == size - 1) {
    const at::NoGradGuard no_grad;
    at::Tensor(parameters[2].second).add_(1);
  }
  expect_error(
      [&] { optimizer->eval(); }, {"rank " + std::to_string(size - 1) + ": parameter 'p2' was written"});
  EXPECT_TRUE(optimizer->training());
  optimizer->reset_from_parameters();
  optimizer->eval();
}

TEST_F(Errors, EvalWithBucketsInFlight) {
  const auto optimizer = make();
  run_backward();
  expect_error([&] { optimizer->eval(); }, {"in flight", "step() or zero_grad()"});
  expect_error([&] { optimizer->full_state("x"); }, {"in flight"});
  expect_error([&] { optimizer->reset_from_parameters(); }, {"in flight"});
  optimizer->step();
  optimizer->eval();
}

TEST_F(Errors, ZeroGradOfOneRankAlone) {
  if (size == 1) return;
  const auto optimizer = make();
  run_backward();
  expect_error(
      [&] {
        if (rank == 0) {
          optimizer->zero_grad();
        } else {
          optimizer->step();
        }
        optimizer->step();
        optimizer->eval();
      },
      {"zero_grad", "same collectives in the same order"});
}

TEST_F(Errors, LibTorchsZeroGradWithBucketsInFlight) {
  for (const bool waiting : {false, true}) {
    const auto optimizer = make(buckets_of(1).bucket_buffers(1));
    torch::optim::Optimizer& plain = *optimizer;
    if (waiting) {
      if (size == 1) continue;
      // Without p2, bucket 0 stays incomplete and the others wait in .grad for its buffer.
      Gradients gradients = random_gradients(parameters, 0, rank);
      gradients.erase("p2");
      backward(parameters, gradients);
      ASSERT_TRUE(parameters[0].second.grad().defined());
      plain.zero_grad();
      expect_error(
          [&] { optimizer->step(); }, {"gradient of parameter 'p1' is gone from .grad", "zero_grad()"});
    } else {
      run_backward(0);
      plain.zero_grad();
      run_backward(1);
      expect_error([&] { optimizer->step(); }, {"arrived twice", "zero_grad()"});
    }
  }
}

// In the middle of a step, with peers already waiting in collectives.
TEST_F(Errors, LibTorchsZeroGradOnOneRankAlone) {
  if (size == 1) return;
  const auto optimizer = make(buckets_of(1).bucket_buffers(1));
  Gradients gradients = random_gradients(parameters, 0, rank);
  if (rank == 0) gradients.erase("p2");
  backward(parameters, gradients);
  if (rank == 0) static_cast<torch::optim::Optimizer&>(*optimizer).zero_grad();
  expect_error([&] { optimizer->step(); }, {"rank 0: the gradient of parameter 'p1' is gone from .grad"});
}

TEST_F(Errors, UnfrozenLater) {
  parameters[1].second.set_requires_grad(false);
  const auto optimizer = make();
  parameters[1].second.set_requires_grad(true);
  run_backward();
  expect_error([&] { optimizer->step(); }, {"parameter 'p1' was frozen", "new optimizer after unfreezing"});
}

TEST_F(Errors, StaleGraph) {
  const auto optimizer = make();
  const at::Tensor loss = (parameters[0].second * parameters[0].second).sum();
  loss.backward({}, /*retain_graph=*/true);
  optimizer->step();
  expect_error([&] { loss.backward(); }, {"modified by an inplace operation"});
}

TEST_F(Errors, AveragedGradientThatOneRankLacks) {
  if (size == 1) return;
  const auto optimizer = make(ShardingOptions().gradients(GradientInput::already_averaged));
  Gradients gradients = random_gradients(parameters, 0, 0);
  if (rank == 1) gradients.erase("p1");
  set_gradients(parameters, gradients);
  expect_error([&] { optimizer->step(); },
      {"parameter 'p1' has a gradient on " + std::to_string(size - 1) + " of " + std::to_string(size),
          "already_averaged"});
}

TEST_F(Errors, AnUndefinedCommunicatorAndLateGroups) {
  expect_error([&] { AdamWScheduleFree({ParameterGroup(parameters)}, nullptr); }, {"null communicator"});
  const auto optimizer = make();
  expect_error(
      [&] { optimizer->add_param_group(torch::optim::OptimizerParamGroup(std::vector<at::Tensor>())); },
      {"add_param_group()", "vector of ParameterGroup"});
}

TEST_F(Errors, FullStateOfAnUnknownName) {
  const auto optimizer = make();
  expect_error(
      [&] { optimizer->full_state("m"); }, {"full_state(\"m\")", "\"z\"", "\"x\"", "\"v\"", "\"y\""});
}

// Options and models are checked at construction, and one rank's error is everybody's.
using Construction = Errors;

TEST_F(Construction, Options) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<AdamWScheduleFreeOptions, std::string>> cases = {
      {AdamWScheduleFreeOptions(-1), "lr"}, {AdamWScheduleFreeOptions(nan), "lr"},
      {AdamWScheduleFreeOptions().betas({-0.1, 0.9}), "beta1"},
      {AdamWScheduleFreeOptions().betas({1.1, 0.9}), "beta1"},
      {AdamWScheduleFreeOptions().betas({0.9, 1.0}), "beta2"}, {AdamWScheduleFreeOptions().eps(-1), "eps"},
      {AdamWScheduleFreeOptions().weight_decay(-1), "weight_decay"},
      {AdamWScheduleFreeOptions().warmup_steps(-1), "warmup_steps"},
      {AdamWScheduleFreeOptions().r(inf), "r must be finite"},
      {AdamWScheduleFreeOptions().weight_lr_power(nan), "weight_lr_power"}};
  for (const auto& [wrong, name] : cases) {
    const AdamWScheduleFreeOptions options = rank == size - 1 ? wrong : AdamWScheduleFreeOptions();
    const std::string who = "rank " + std::to_string(size - 1);
    expect_error([&] { AdamWScheduleFree({ParameterGroup(parameters)}, world(), options); }, {who, name});
    expect_error([&] { AdamWScheduleFree({ParameterGroup(parameters, options)}, world()); },
        {who, "parameter group 0", name});
  }
}

TEST_F(Construction, ShardingOptions) {
  using Sharding = ::zerosched::ShardingOptions;
  const std::vector<std::pair<Sharding, std::string>> cases = {{Sharding().bucket_bytes(0), "bucket_bytes"},
      {Sharding().first_bucket_bytes(-1), "first_bucket_bytes"},
      {Sharding().bucket_buffers(0), "bucket_buffers"}, {Sharding().max_grad_norm(0), "max_grad_norm"},
      {Sharding().max_grad_norm(std::numeric_limits<double>::quiet_NaN()), "max_grad_norm"},
      {Sharding().reduce_dtype(at::kHalf), "reduce_dtype"}};
  for (const auto& [wrong, name] : cases) {
    const Sharding sharding = rank == 0 ? wrong : Sharding();
    expect_error(
        [&] { AdamWScheduleFree({ParameterGroup(parameters)}, world(), {}, sharding); }, {"rank 0: ", name});
  }
}

TEST_F(Construction, Models) {
  const auto expect_refused = [&](const std::vector<ParameterGroup>& groups,
                                  const std::vector<std::string>& parts) {
    expect_error([&] { AdamWScheduleFree(groups, world()); }, parts);
  };
  const auto one = [](const std::string& name, at::Tensor parameter) {
    return std::vector<ParameterGroup>{ParameterGroup(NamedParameters{{name, std::move(parameter)}})};
  };
  expect_refused({}, {"nothing to train"});
  expect_refused(one("ints", at::ones({3}, at::kLong)), {"nothing to train"});
  expect_refused(one("complex", at::ones({3}, at::kComplexFloat).requires_grad_()),
      {"'complex' is ComplexFloat", "BFloat16 and Half"});
  expect_refused(one("computed", parameters[0].second * 2), {"'computed' is not a leaf"});
  expect_refused(one("nothing", at::Tensor()), {"'nothing'", "undefined"});
  expect_refused(one("strided", at::ones({8})[0].expand({4}).detach().requires_grad_()),
      {"'strided' is not a dense tensor"});
  expect_refused(
      {ParameterGroup(parameters), ParameterGroup(NamedParameters{{"again", parameters[1].second}})},
      {"'again' of group 1", "group 0", "'p1'"});
  expect_refused({ParameterGroup(NamedParameters{{"w", parameters[0].second}, {"w", parameters[1].second}})},
      {"two parameters are named 'w'"});
}

TEST_F(Construction, RanksWithDifferentModels) {
  if (size == 1) return;
  const bool odd_one = rank == size - 1;
  const auto expect_difference = [&](const NamedParameters& given, const AdamWScheduleFreeOptions& options,
                                     const ::zerosched::ShardingOptions& sharding,
                                     const std::vector<std::string>& parts) {
    expect_error([&] { AdamWScheduleFree({ParameterGroup(given)}, world(), options, sharding); }, parts);
  };
  NamedParameters renamed = parameters, reshaped = parameters, shorter = parameters,
                  frozen = make_parameters({{40}, {41}, {42}});
  if (odd_one) {
    renamed[1].first = "q1";
    reshaped[1].second = at::zeros({1, 41}).requires_grad_();
    shorter.pop_back();
    frozen[0].second.set_requires_grad(false);
  }
  const std::string who = "rank " + std::to_string(size - 1) + " has ";
  expect_difference(renamed, {}, {}, {"rank 0 has parameter 'p1' [41]", who + "parameter 'q1'"});
  expect_difference(reshaped, {}, {}, {"rank 0 has parameter 'p1' [41]", who + "parameter 'p1' [1, 41]"});
  expect_difference(shorter, {}, {}, {"rank 0 has parameter 'p2'", who + "nothing more"});
  expect_difference(frozen, {}, {}, {"rank 0 has parameter 'p0'", who + "parameter 'p1'"});
  expect_difference(parameters, AdamWScheduleFreeOptions(odd_one ? 0.1 : 0.2), {}, {"lr=0.2", "lr=0.1"});
  expect_difference(
      parameters, {}, buckets_of(odd_one ? 100 : 200), {"bucket_bytes=200", "bucket_bytes=100"});
}

TEST_F(Construction, WithoutBroadcastValuesMustBeTheSame) {
  const auto sharding = ::zerosched::ShardingOptions().broadcast_parameters(false);
  { const AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, sharding); }
  if (size == 1) return;
  NamedParameters given = make_parameters({{5}, {6}});
  if (rank == 1) given[1].second.detach()[3] += 1e-6;
  expect_error([&] { AdamWScheduleFree({ParameterGroup(given)}, world(), {}, sharding); },
      {"broadcast_parameters(false)", "differ between ranks"});
}

}  // namespace
}  // namespace zerosched::testing
