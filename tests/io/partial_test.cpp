// Loading what fits: other groups, new heads, other classes, frozen by now or no more.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/adamw.h>
#include <zerosched/checkpoint.h>
#include <zerosched/sgd.h>
#include <zerosched/sgd_schedulefree.h>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

namespace zerosched::testing {
namespace {

using Strings = std::map<std::string, std::string>;

void train(const NamedParameters& parameters, ShardedOptimizer& optimizer, int64_t first, int64_t end) {
  for (int64_t step = first; step < end; ++step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer.step();
  }
}

NamedParameters body() {
  NamedParameters parameters = make_parameters({{9}, {20, 3}, {71}});
  parameters[0].first = "body.bias";
  parameters[1].first = "body.weight";
  parameters[2].first = "head.weight";
  return parameters;
}

NamedParameters with_new_head() {
  NamedParameters parameters = body();
  parameters[2].second = at::full({5}, 0.5).requires_grad_();
  return parameters;
}

LoadOptions partial() { return LoadOptions().partial(true); }

void expect_tensor(
    ShardedOptimizer& optimizer, const char* which, const char* name, const at::Tensor& value) {
  EXPECT_TRUE(same_bits(optimizer.full_state(which).at(name), value)) << which << " of " << name;
}

class Partial : public ::testing::Test {
 protected:
  void SetUp() override {
    optimizer = std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)},
        world(), AdamWScheduleFreeOptions(0.01).warmup_steps(2), buckets_of(100));
    train(parameters, *optimizer, 0, 5);
    CheckpointExtra extra;
    extra.shared.json["epoch"] = "3";
    optimizer->save_checkpoint(path, extra);
    saved = full_state(*optimizer);
  }

  const Scratch scratch;
  const std::string path = scratch / "saved";
  NamedParameters parameters = body();
  std::unique_ptr<AdamWScheduleFree> optimizer;
  State saved;
};

TEST_F(Partial, OtherGroupsGoOn) {
  const NamedParameters own = body();
  AdamWScheduleFree other(
      {ParameterGroup({own[0]}, AdamWScheduleFreeOptions(0.01).warmup_steps(2)),
          ParameterGroup({own[1], own[2]}, AdamWScheduleFreeOptions(0.01).warmup_steps(2))},
      world());
  expect_error(
      [&] { other.load_checkpoint(path); }, {"1 parameter groups", "2", "LoadOptions().partial(true)"});
  const LoadedCheckpoint loaded = other.load_checkpoint(path, partial());
  EXPECT_EQ(
      loaded.taken, Strings({{"body.bias", "z, x, v"}, {"body.weight", "z, x, v"}, {"head.weight", "z, x, v"},
                        {"group 0", "k and what else it counts"}, {"group 1", "k and what else it counts"}}));
  EXPECT_EQ(loaded.not_taken, Strings({{"options", "those of this optimizer stay"}}));
  EXPECT_EQ(loaded.extra.shared.json.at("epoch"), "3");
  EXPECT_EQ(loaded.world_size, world()->size());
  expect_same_bits(full_state(other), saved);
  expect_parameters_are(own, saved.at("y"));
  train(parameters, *optimizer, 5, 8);
  train(own, other, 5, 8);
  expect_same_bits(full_state(other), full_state(*optimizer));
}

TEST_F(Partial, NewHeadInAGroupOfItsOwn) {
  const NamedParameters own = with_new_head();
  AdamWScheduleFree other({ParameterGroup({own[0], own[1]}, AdamWScheduleFreeOptions(0.01).warmup_steps(2)),
                              ParameterGroup({own[2]}, AdamWScheduleFreeOptions(0.5))},
      world());
  const LoadedCheckpoint loaded = other.load_checkpoint(path, partial());
  EXPECT_EQ(loaded.taken, Strings({{"body.bias", "z, x, v"}, {"body.weight", "z, x, v"},
                              {"group 0", "k and what else it counts"}}));
  EXPECT_EQ(loaded.not_taken, Strings({{"head.weight", "has shape [71] there and [5] here"},
                                  {"options", "those of this optimizer stay"}}));
  EXPECT_EQ(other.param_groups()[1].options().get_lr(), 0.5);
  expect_tensor(other, "x", "head.weight", at::full({5}, 0.5));
  expect_tensor(other, "v", "body.bias", saved.at("v").at("body.bias"));
  // The body trains on as if it had never stopped; the head begins with its first step.
  train(parameters, *optimizer, 5, 7);
  train(own, other, 5, 7);
  for (const char* which : {"z", "x", "v", "y"}) {
    for (const char* name : {"body.bias", "body.weight"}) {
      expect_tensor(other, which, name, optimizer->full_state(which).at(name));
    }
  }
}

TEST_F(Partial, NewHeadAmongOthersStartsTheGroupAnew) {
  const NamedParameters own = with_new_head();
  AdamWScheduleFree other({ParameterGroup(own)}, world(), AdamWScheduleFreeOptions(0.01));
  train(own, other, 50, 52);
  const at::Tensor head = other.full_state("x").at("head.weight");
  const LoadedCheckpoint loaded = other.load_checkpoint(path, partial());
  EXPECT_EQ(loaded.taken, Strings({{"body.bias", "x"}, {"body.weight", "x"}}));
  EXPECT_EQ(loaded.not_taken.at("group 0"),
      "starts anew from the weights: 'head.weight' has no state there; in a group of its own it would not "
      "keep the "
      "others from going on");
  for (const char* which : {"x", "z", "y"}) {
    expect_tensor(other, which, "body.weight", saved.at("x").at("body.weight"));
    expect_tensor(other, which, "head.weight", head);
  }
  for (const char* name : {"body.weight", "head.weight"}) {
    expect_tensor(other, "v", name, at::zeros_like(other.full_state("x").at(name)));
  }
  // As an optimizer that was made of these weights.
  NamedParameters fresh = with_new_head();
  {
    const at::NoGradGuard no_grad;
    fresh[0].second.copy_(saved.at("x").at("body.bias"));
    fresh[1].second.copy_(saved.at("x").at("body.weight"));
    fresh[2].second.copy_(head);
  }
  AdamWScheduleFree reference({ParameterGroup(fresh)}, world(), AdamWScheduleFreeOptions(0.01));
  train(own, other, 0, 3);
  train(fresh, reference, 0, 3);
  expect_same_bits(full_state(other), full_state(reference));
}

TEST_F(Partial, WhatIsNoMoreTrained) {
  NamedParameters own = body();
  at::Tensor(own[1].second).requires_grad_(false);
  own.pop_back();
  AdamWScheduleFree other({ParameterGroup(own)}, world());
  expect_error(
      [&] { other.load_checkpoint(path); }, {"has parameter 'body.weight'", "it is frozen here", "partial"});
  const LoadedCheckpoint loaded = other.load_checkpoint(path, partial());
  EXPECT_EQ(loaded.taken.at("body.weight"), "x");
  EXPECT_EQ(loaded.not_taken.at("head.weight"), "is in the checkpoint, and not in this optimizer");
  EXPECT_TRUE(same_bits(own[1].second.detach(), saved.at("x").at("body.weight")));
  expect_tensor(other, "v", "body.bias", saved.at("v").at("body.bias"));
}

TEST_F(Partial, WhatWasFrozenIsTrained) {
  NamedParameters frozen = body();
  at::Tensor(frozen[1].second).requires_grad_(false);
  at::Tensor(frozen[1].second).copy_(random_like(frozen[1].second, 9, 0, 0));
  AdamWScheduleFree first({ParameterGroup(frozen)}, world());
  train({frozen[0], frozen[2]}, first, 0, 3);
  first.save_checkpoint(scratch / "frozen");
  const NamedParameters own = body();
  AdamWScheduleFree other({ParameterGroup({own[0], own[2]}), ParameterGroup({own[1]})}, world());
  expect_error([&] { other.load_checkpoint(scratch / "frozen"); }, {"2"});
  const LoadedCheckpoint loaded = other.load_checkpoint(scratch / "frozen", partial());
  EXPECT_EQ(loaded.taken.at("body.weight"), "x");
  EXPECT_EQ(loaded.taken.at("head.weight"), "z, x, v");
  for (const char* which : {"z", "x", "y"}) expect_tensor(other, which, "body.weight", frozen[1].second);
  AdamWScheduleFree alike({ParameterGroup(body())}, world());
  expect_error([&] { alike.load_checkpoint(scratch / "frozen"); }, {"'body.weight'", "it was frozen there"});
}

TEST_F(Partial, AdamWBecomesScheduleFree) {
  const NamedParameters plain = body();
  AdamW adamw({ParameterGroup(plain)}, world(), AdamWOptions(0.01));
  train(plain, adamw, 0, 4);
  adamw.save_checkpoint(scratch / "adamw");
  const auto x = adamw.full_state("x"), v = adamw.full_state("v");
  const NamedParameters own = body();
  AdamWScheduleFree other({ParameterGroup(own)}, world(), AdamWScheduleFreeOptions(0.01));
  expect_error([&] { other.load_checkpoint(scratch / "adamw"); },
      {"was saved by AdamW, and this optimizer is AdamWScheduleFree", "LoadOptions().partial(true)"});
  const LoadedCheckpoint loaded = other.load_checkpoint(scratch / "adamw", partial());
  EXPECT_EQ(loaded.taken.at("body.weight"), "x, v");
  for (const auto& [name, value] : x) {
    for (const char* which : {"z", "x", "y"}) expect_tensor(other, which, name.c_str(), value);
    expect_tensor(other, "v", name.c_str(), v.at(name));
  }
  // v keeps the number of steps that it is the mean over, and the average begins with the next step: x = z.
  train(own, other, 4, 5);
  const auto z = other.full_state("z");
  for (const auto& [name, value] : other.full_state("x")) EXPECT_TRUE(same_bits(value, z.at(name))) << name;
  const at::Tensor gradient = mean_gradients(world()->size(), [&](int rank) {
    return random_gradients(own, 4, rank);
  }).at("body.bias");
  const at::Tensor v_hat =
      (v.at("body.bias").to(at::kDouble) * 0.999 + 0.001 * gradient.to(at::kDouble).square()) /
      (1 - std::pow(0.999, 5));
  const at::Tensor expected = x.at("body.bias").to(at::kDouble) - 0.01 * gradient / (v_hat.sqrt() + 1e-8);
  EXPECT_LE((z.at("body.bias").to(at::kDouble) - expected).abs().max().item<double>(), 1e-6);
}

TEST_F(Partial, OtherStatesStartAnew) {
  const NamedParameters own = body();
  SGD sgd({ParameterGroup(own)}, world(), SGDOptions(0.1));
  const LoadedCheckpoint loaded = sgd.load_checkpoint(path, partial());
  EXPECT_EQ(loaded.taken.at("body.weight"), "x");
  EXPECT_EQ(loaded.not_taken.at("group 0"),
      "starts anew from the weights: AdamWScheduleFree has no m that would do for SGD");
  expect_tensor(sgd, "x", "body.weight", saved.at("x").at("body.weight"));
  // AdamW's m is a mean, and SGD's a sum.
  const NamedParameters plain = body();
  AdamW adamw({ParameterGroup(plain)}, world());
  train(plain, adamw, 0, 2);
  adamw.save_checkpoint(scratch / "adamw");
  sgd.load_checkpoint(scratch / "adamw", partial());
  expect_tensor(sgd, "m", "body.weight", at::zeros({20, 3}));
}

TEST_F(Partial, NothingFits) {
  const NamedParameters own = make_parameters({{4}});
  AdamWScheduleFree other({ParameterGroup(own)}, world());
  const State before = full_state(other);
  expect_error([&] { other.load_checkpoint(path, partial()); },
      {path, "nothing of it fits", "'p0' is not in the checkpoint"});
  expect_same_bits(full_state(other), before);
}

TEST_F(Partial, DamageIsAnErrorAllTheSame) {
  const NamedParameters own = with_new_head();
  AdamWScheduleFree other({ParameterGroup(own)}, world());
  const State before = full_state(other);
  on_rank_0([&] { std::filesystem::resize_file(path + "/rank_00000.safetensors", 40); });
  expect_error([&] { other.load_checkpoint(path, partial()); }, {"rank_00000.safetensors"});
  expect_same_bits(full_state(other), before);
}

TEST(PartialModule, BuffersAreTakenByName) {
  const Scratch scratch;
  const auto make = [](int64_t classes) {
    return torch::nn::Sequential(
        torch::nn::Linear(4, 8), torch::nn::BatchNorm1d(8), torch::nn::Linear(8, classes));
  };
  torch::nn::Sequential net = make(3);
  net->named_buffers()["1.running_mean"].fill_(0.25);
  AdamWScheduleFree optimizer(*net, world());
  optimizer.save_checkpoint(scratch / "saved");
  torch::nn::Sequential other = make(5);
  AdamWScheduleFree head(*other, world());
  const LoadedCheckpoint loaded = head.load_checkpoint(scratch / "saved", partial());
  EXPECT_EQ(loaded.taken.at("1.running_mean"), "value");
  EXPECT_EQ(loaded.taken.at("0.weight"), "x");
  EXPECT_EQ(loaded.not_taken.at("2.weight"), "has shape [3, 8] there and [5, 8] here");
  EXPECT_TRUE(same_bits(other->named_buffers()["1.running_mean"], at::full({8}, 0.25)));
  EXPECT_TRUE(
      same_bits(other->named_parameters()["0.weight"].detach(), optimizer.full_state("x").at("0.weight")));
}

TEST(PartialSeveral, NamesSayOfWhich) {
  const Scratch scratch;
  const NamedParameters a = make_parameters({{3}}), b = make_parameters({{4}});
  AdamWScheduleFree first({ParameterGroup(a)}, world()), second({ParameterGroup(b)}, world());
  save_checkpoint(scratch / "both", {&first, &second});
  const NamedParameters c = make_parameters({{5}, {2}});
  AdamWScheduleFree other({ParameterGroup({c[0]}), ParameterGroup({c[1]})}, world());
  const auto load = [&] { return load_checkpoint(scratch / "both", {&first, &other}, partial()); };
  expect_error([&] { load(); }, {"optimizer_1", "nothing of it fits"});
  SGDScheduleFree third({ParameterGroup(b)}, world(), SGDScheduleFreeOptions(1.0));
  const LoadedCheckpoint loaded = load_checkpoint(scratch / "both", {nullptr, &third}, partial());
  EXPECT_EQ(loaded.taken,
      Strings({{"optimizer 1: p0", "z, x"}, {"optimizer 1: group 0", "k and what else it counts"}}));
}

// A partial load begins another training: it keeps its hands off the checkpoints that it began from.
TEST_F(Partial, IsAnotherTraining) {
  const NamedParameters own = body();
  AdamWScheduleFree other({ParameterGroup(own)}, world());
  other.load_checkpoint(path, partial());
  other.save_checkpoint(scratch / "tuned", {}, CheckpointOptions().keep_last(1));
  EXPECT_TRUE(std::filesystem::exists(path + "/manifest.json"));
}

}  // namespace
}  // namespace zerosched::testing
