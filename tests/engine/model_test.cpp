// What an optimizer is given: modules, groups of a module's parameters, what is kept, and what is refused.
#include "engine/toy.h"
#include "engine/warnings.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/adamw.h>
#include <zerosched/adamw_schedulefree_paper.h>
#include <zerosched/gpa_adamw.h>
#include <zerosched/radam_schedulefree.h>
#include <zerosched/safetensors.h>
#include <zerosched/sgd.h>
#include <zerosched/sgd_schedulefree.h>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <limits>

namespace zerosched::testing {
namespace {

struct NetImpl : torch::nn::Module {
  NetImpl() {
    torch::manual_seed(1);
    body = register_module("body", torch::nn::Linear(4, 5));
    norm = register_module("norm", torch::nn::BatchNorm1d(5));
    head = register_module("head", torch::nn::Linear(5, 3));
  }
  at::Tensor forward(const at::Tensor& input) { return head(norm(body(input)).relu()); }
  torch::nn::Linear body{nullptr}, head{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(Net);

class Models : public ::testing::Test {
 protected:
  const int size = world()->size();
  const int rank = world()->rank();
  const std::string last = "rank " + std::to_string(size - 1) + ": ";

  void train(Net& net, ShardedOptimizer& optimizer, int64_t steps) {
    for (int64_t step = 0; step < steps; ++step) {
      optimizer.zero_grad();
      const at::Tensor input = random_like(at::empty({6, 4}), step, rank, 0);
      (net->forward(input) - 1).square().mean().backward();
      optimizer.step();
    }
  }
};

std::map<std::string, at::Tensor> values_of(const torch::nn::Module& module) {
  std::map<std::string, at::Tensor> values;
  for (const auto& item : module.named_parameters()) values[item.key()] = item.value().detach().clone();
  for (const auto& item : module.named_buffers()) values[item.key()] = item.value().clone();
  return values;
}

std::vector<std::string> names_in(const NamedParameters& named) {
  std::vector<std::string> names;
  for (const auto& pair : named) names.push_back(pair.first);
  return names;
}

ParameterGroup one(const std::string& name, const at::Tensor& parameter) {
  return ParameterGroup(NamedParameters{{name, parameter}});
}

at::Tensor parameter(std::vector<int64_t> shape) { return at::ones(shape).requires_grad_(); }

template <typename Optimizer, typename Options>
void expect_takes_modules_groups_and_both() {
  Net net;
  const ParameterGroup body(net->body->named_parameters()), head(net->head->named_parameters());
  const std::vector<ParameterGroup> groups = {ParameterGroup(net->body->named_parameters())};
  const auto sharding = ShardingOptions().bucket_buffers(2);
  const auto expect_groups = [](const ShardedOptimizer& optimizer, size_t count) {
    EXPECT_EQ(optimizer.param_groups().size(), count);
  };
  expect_groups(Optimizer(*net, world()), 1);
  expect_groups(Optimizer(*net, world(), Options(0.1), sharding), 1);
  expect_groups(Optimizer(groups, world(), 0.1), 1);
  expect_groups(Optimizer({body}, world(), {}, sharding), 1);
  expect_groups(Optimizer(*net, groups, world()), 1);
  expect_groups(Optimizer(*net, {body, head}, world(), {}, sharding), 2);
  expect_groups(Optimizer(Trainable(*net), world()), 1);
  expect_groups(*std::make_unique<Optimizer>(*net, groups, world(), Options(0.1)), 1);
}

TEST_F(Models, EveryClassTakesModulesGroupsAndBoth) {
  expect_takes_modules_groups_and_both<AdamW, AdamWOptions>();
  expect_takes_modules_groups_and_both<SGD, SGDOptions>();
  expect_takes_modules_groups_and_both<SGDScheduleFree, SGDScheduleFreeOptions>();
  expect_takes_modules_groups_and_both<RAdamScheduleFree, RAdamScheduleFreeOptions>();
  expect_takes_modules_groups_and_both<AdamWScheduleFree, AdamWScheduleFreeOptions>();
  expect_takes_modules_groups_and_both<AdamWScheduleFreePaper, AdamWScheduleFreePaperOptions>();
  expect_takes_modules_groups_and_both<GPAAdamW, GPAAdamWOptions>();
}

TEST_F(Models, ATrainableSaysWhatItHolds) {
  Net net;
  const Trainable what(*net);
  ASSERT_TRUE(what.module());
  EXPECT_EQ(names_in(what.module()->buffers),
      (std::vector<std::string>{"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}));
  EXPECT_EQ(names_in(what.groups().front().named_parameters()), names_in(parameters_of(*net)));
  EXPECT_TRUE(what.module_now());
  EXPECT_FALSE(Trainable(what.groups()).module());
  EXPECT_FALSE(Trainable(what.groups()).module_now());
  const Trainable outlives = [] { return Trainable(*Net()); }();
  EXPECT_TRUE(outlives.module());
  EXPECT_FALSE(outlives.module_now());
  const NetImpl on_the_stack;
  EXPECT_FALSE(Trainable(on_the_stack).module_now());
}

// Two groups of a module train as groups alone do, bit for bit; the rest of the module stays and is saved.
TEST_F(Models, GroupsOfAModuleTrainAndTheRestIsKept) {
  const Scratch scratch;
  Net net;
  const auto groups_of = [](Net& of) {
    // Named otherwise than in the module, "weight" and "bias" in both groups.
    return std::vector<ParameterGroup>{
        ParameterGroup(of->body->named_parameters(), AdamWScheduleFreeOptions(0.1)),
        ParameterGroup(of->head->named_parameters(), AdamWScheduleFreeOptions(0.01).weight_decay(0.1))};
  };
  if (rank > 0) {
    const at::NoGradGuard no_grad;
    net->norm->weight.fill_(7);  // rank 0's is what all start from
  }
  AdamWScheduleFree optimizer(*net, groups_of(net), world());
  EXPECT_TRUE(at::equal(net->norm->weight, at::ones({5})));
  train(net, optimizer, 4);
  EXPECT_TRUE(at::equal(net->norm->weight, at::ones({5})));
  EXPECT_TRUE(net->norm->weight.grad().defined()) << "LibTorch's own affair";
  const auto x = optimizer.full_state("x");
  EXPECT_EQ(x.size(), 4U);

  Net other;
  {
    const auto group = [&](const std::string& prefix, const AdamWScheduleFreeOptions& options) {
      NamedParameters named;
      for (const auto& [name, tensor] : parameters_of(*other)) {
        if (name.rfind(prefix, 0) == 0) named.emplace_back(name, tensor);
      }
      return ParameterGroup(named, options);
    };
    AdamWScheduleFree alone({group("body", AdamWScheduleFreeOptions(0.1)),
                                group("head", AdamWScheduleFreeOptions(0.01).weight_decay(0.1))},
        world());
    train(other, alone, 4);
    for (const auto& [name, value] : alone.full_state("x")) EXPECT_TRUE(same_bits(value, x.at(name))) << name;
  }

  optimizer.save_checkpoint(scratch / "saved");
  export_safetensors(optimizer, scratch / "y.safetensors", "y");
  const auto saved = values_of(*net);
  train(net, optimizer, 3);
  optimizer.eval();
  for (const bool exported : {false, true}) {
    Net again;
    {
      const at::NoGradGuard no_grad;
      for (auto& item : again->named_parameters()) item.value().fill_(3);
    }
    AdamWScheduleFree resumed(*again, groups_of(again), world());
    if (exported) {
      import_safetensors(resumed, scratch / "y.safetensors");
    } else {
      resumed.load_checkpoint(scratch / "saved");
    }
    for (const auto& [name, value] : values_of(*again)) EXPECT_TRUE(same_bits(value, saved.at(name))) << name;
    if (exported) continue;
    train(again, resumed, 3);
    resumed.eval();
    for (const auto& [name, value] : values_of(*again)) {
      EXPECT_TRUE(same_bits(value, values_of(*net).at(name))) << name;
    }
  }
  // Strict: the optimizer of the whole module reads the same names.
  Net whole;
  AdamWScheduleFree of_all(*whole, world());
  import_safetensors(of_all, scratch / "y.safetensors");
  for (const auto& [name, value] : values_of(*whole)) EXPECT_TRUE(same_bits(value, saved.at(name))) << name;
}

struct Tied : torch::nn::Module {
  Tied() {
    const at::Tensor trained = at::ones({3, 2}), kept = at::full({4}, 2.0);
    for (const char* name : {"in", "out"}) register_parameter(name, trained);
    for (const char* name : {"kept", "again"}) register_parameter(name, kept);
    for (auto& item : named_parameters()) item.value().set_requires_grad(true);
  }
};

// Known by their first name in the module, and exported under all.
TEST_F(Models, GroupsOfTiedParameters) {
  const Scratch scratch;
  const Tied tied;
  AdamWScheduleFree optimizer(tied, {one("out", tied.named_parameters()["out"])}, world());
  EXPECT_EQ(optimizer.full_state("x").count("in"), 1U);
  (tied.named_parameters()["in"].sum() + tied.named_parameters()["again"].sum()).backward();
  optimizer.step();
  optimizer.save_checkpoint(scratch / "saved");
  export_safetensors(optimizer, scratch / "y", "y");
  const Tied again, imported;
  AdamWScheduleFree resumed(again, {one("in", again.named_parameters()["in"])}, world());
  resumed.load_checkpoint(scratch / "saved");
  AdamWScheduleFree whole(imported, world());
  import_safetensors(whole, scratch / "y");
  for (const auto& [name, value] : values_of(tied)) {
    EXPECT_TRUE(same_bits(value, again.named_parameters()[name])) << name;
    EXPECT_TRUE(same_bits(value, imported.named_parameters()[name])) << name;
  }
  EXPECT_FALSE(at::equal(tied.named_parameters()["out"], at::ones({3, 2})));
  EXPECT_TRUE(at::equal(tied.named_parameters()["again"], at::full({4}, 2.0)));
}

TEST_F(Models, TwoOptimizersShareAModuleButNoParameter) {
  const Scratch scratch;
  const auto make = [&](Net& net) {
    return std::make_pair(
        std::make_unique<AdamWScheduleFree>(
            *net, std::vector<ParameterGroup>{ParameterGroup(net->body->named_parameters())}, world()),
        std::make_unique<SGD>(
            *net, std::vector<ParameterGroup>{ParameterGroup(net->head->named_parameters())}, world()));
  };
  const auto train_both = [&](Net& net, ShardedOptimizer& a, ShardedOptimizer& b, int64_t first) {
    for (int64_t step = first; step < first + 3; ++step) {
      a.zero_grad();
      b.zero_grad();
      net->forward(random_like(at::empty({6, 4}), step, rank, 0)).square().mean().backward();
      a.step();
      b.step();
    }
  };
  Net net;
  const auto [a, b] = make(net);
  train_both(net, *a, *b, 0);
  a->save_checkpoint(scratch / "a");
  b->save_checkpoint(scratch / "b");
  train_both(net, *a, *b, 3);

  Net again;
  const auto [c, d] = make(again);
  c->load_checkpoint(scratch / "a");
  d->load_checkpoint(scratch / "b");
  train_both(again, *c, *d, 3);
  for (const auto& item : net->named_parameters()) {
    EXPECT_TRUE(same_bits(item.value(), again->named_parameters()[item.key()])) << item.key();
  }
}

TEST_F(Models, GroupsMustBeOfTheModule) {
  Net net, other;
  const bool odd_one = rank == size - 1;
  expect_error(
      [&] {
        AdamWScheduleFree(*net,
            {ParameterGroup(net->head->named_parameters()),
                one("mine", odd_one ? other->body->weight : net->body->weight)},
            world());
      },
      {last, "parameter 'mine' of group 1 is not one of the module's"});
  expect_error([&] { AdamWScheduleFree({one("w", parameter({3}))}, {one("w", parameter({3}))}, world()); },
      {"not one of the module's"});
  expect_error(
      [&] {
        AdamWScheduleFree(*net, {one("a", net->body->weight), one("b", net->body->weight)}, world());
      },
      {"'b' of group 1 is also in group 0, as 'a'"});
}

TEST_F(Models, GroupsAloneWarnOfBuffers) {
  const NamedParameters parameters = make_parameters({{5}});
  Net net;
  Warnings warnings;
  { AdamWScheduleFree({ParameterGroup(parameters)}, world()); }
  EXPECT_EQ(warnings.with("AdamWScheduleFree(*module, groups, communicator)").size(), rank == 0 ? 1U : 0U);
  { SGD(*net, {ParameterGroup(net->named_parameters())}, world()); }
  { SGD(*net, world()); }
  EXPECT_EQ(warnings.with("(*module, groups, communicator)").size(), rank == 0 ? 1U : 0U);
}

TEST_F(Models, Clamp) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const NamedParameters parameters = make_parameters({{5}, {6}});
  const ParameterGroup free(parameters);
  EXPECT_EQ(free.clamp_low(), -inf);
  EXPECT_EQ(free.clamp_high(), inf);
  const ParameterGroup boxed = ParameterGroup(parameters, AdamWScheduleFreeOptions(0.1)).clamp(-1, 2.5);
  ParameterGroup copy = free;
  copy = boxed;
  EXPECT_EQ(copy.clamp_low(), -1);
  EXPECT_EQ(copy.clamp_high(), 2.5);
  EXPECT_TRUE(copy.has_options());
  { const AdamWScheduleFree optimizer({ParameterGroup(parameters).clamp(0, inf)}, world()); }
  for (const auto& [low, high] :
      {std::make_pair(1.0, 0.5), {nan, 1.0}, {0.0, nan}, {inf, inf}, {-inf, -inf}}) {
    ParameterGroup wrong({parameters[1]});
    if (rank == size - 1) wrong.clamp(low, high);
    expect_error(
        [&] {
          AdamWScheduleFree({ParameterGroup({parameters[0]}), wrong}, world());
        },
        {last, "parameter group 1: clamp("});
  }
  if (size == 1) return;
  expect_error([&] { AdamWScheduleFree({ParameterGroup(parameters).clamp(0, rank == 0 ? 1 : 2)}, world()); },
      {"clamped to [0, 1]", "clamped to [0, 2]"});
}

}  // namespace
}  // namespace zerosched::testing
