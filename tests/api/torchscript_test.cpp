// TorchScript modules, trained in place.
#include "engine/toy.h"
#include "engine/warnings.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/safetensors.h>
#include <zerosched/sgd.h>
#include <zerosched/update_batch_norm.h>

#include <torch/csrc/jit/api/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>

namespace zerosched::testing {
namespace {

struct Eager : torch::nn::Module {
  Eager() {
    torch::manual_seed(1);
    layer = register_module("layer", torch::nn::Linear(4, 5));
    norm = register_module("norm", torch::nn::BatchNorm1d(5));
    scale = register_parameter("scale", at::full({5}, 2.0), /*requires_grad=*/false);
  }
  at::Tensor forward(const at::Tensor& input) { return norm(layer(input)) * scale; }
  torch::nn::Linear layer{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  at::Tensor scale;
};

/// The same, of the same values.
torch::jit::Module scripted(double momentum = 0.1, bool has_alias = false) {
  Eager eager;
  const auto clone = [](const at::Tensor& tensor) {
    return tensor.detach().clone().requires_grad_(tensor.requires_grad());
  };
  torch::jit::Module layer("Linear"), norm("Norm"), root("Root");
  layer.register_parameter("weight", clone(eager.layer->weight), false);
  layer.register_parameter("bias", clone(eager.layer->bias), false);
  layer.define("def forward(self, x):\n  return torch.linear(x, self.weight, self.bias)\n");
  norm.register_parameter("weight", clone(eager.norm->weight), false);
  norm.register_parameter("bias", clone(eager.norm->bias), false);
  norm.register_buffer("running_mean", clone(eager.norm->running_mean));
  norm.register_buffer("running_var", clone(eager.norm->running_var));
  norm.register_buffer("num_batches_tracked", clone(eager.norm->num_batches_tracked));
  norm.register_attribute("training", c10::BoolType::get(), true);
  // As torch.jit.script makes of torch.nn.BatchNorm1d: momentum is a constant of the type, and of the code.
  if (momentum > 0) norm.type()->addConstant("momentum", momentum);
  norm.define(
      "def forward(self, x):\n"
      "  if self.training:\n"
      "    self.num_batches_tracked.add_(1)\n"
      "  return torch.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, "
      "self.training, 0.1, "
      "1e-5, False)\n");
  root.register_module("layer", layer);
  root.register_module("norm", norm);
  if (has_alias) root.register_module("alias", norm);
  root.register_parameter("scale", clone(eager.scale), false);
  root.define("def forward(self, x):\n  return self.norm.forward(self.layer.forward(x)) * self.scale\n");
  return root;
}

at::Tensor forward(Eager& module, const at::Tensor& input) { return module.forward(input); }
at::Tensor forward(torch::jit::Module& module, const at::Tensor& input) {
  return module.forward({input}).toTensor();
}

template <typename Module>
void train(Module& module, ShardedOptimizer& optimizer, int64_t first, int64_t end) {
  for (int64_t step = first; step < end; ++step) {
    optimizer.zero_grad();
    (forward(module, random_like(at::empty({6, 4}), step, world()->rank(), 0)) - 1)
        .square()
        .mean()
        .backward();
    optimizer.step();
  }
}

std::map<std::string, at::Tensor> values_of(const torch::jit::Module& module) {
  std::map<std::string, at::Tensor> values;
  for (const auto& named : module.named_parameters()) values[named.name] = named.value.detach().clone();
  for (const auto& named : module.named_buffers()) values[named.name] = named.value.clone();
  return values;
}

void expect_equal(const std::map<std::string, at::Tensor>& a, const std::map<std::string, at::Tensor>& b) {
  ASSERT_EQ(a.size(), 8U);
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, value] : a) EXPECT_TRUE(same_bits(value, b.at(name))) << name;
}

TEST(TorchScript, TrainsAsTheEagerModuleDoes) {
  Eager eager;
  torch::jit::Module script = scripted();
  AdamWScheduleFree one(eager, world(), 0.1), other(script, world(), 0.1);
  train(eager, one, 0, 4);
  train(script, other, 0, 4);
  one.eval();
  other.eval();
  const auto values = values_of(script);
  EXPECT_TRUE(same_bits(values.at("scale"), eager.scale));
  for (const auto& item : eager.named_parameters()) {
    EXPECT_TRUE(at::allclose(item.value(), values.at(item.key()), 1e-5, 1e-6)) << item.key();
  }
  for (const auto& item : eager.named_buffers()) {
    EXPECT_TRUE(at::allclose(item.value(), values.at(item.key()), 1e-5, 1e-6)) << item.key();
  }
}

TEST(TorchScript, SavesLoadsExportsAndImports) {
  const Scratch scratch;
  torch::jit::Module script = scripted(), again = scripted(), imported = scripted();
  AdamWScheduleFree optimizer(script, world(), 0.1);
  train(script, optimizer, 0, 3);
  optimizer.save_checkpoint(scratch / "saved");
  export_safetensors(optimizer, scratch / "y", "y");
  const auto saved = values_of(script);
  train(script, optimizer, 3, 5);

  AdamWScheduleFree resumed(again, world(), 0.2), starting(imported, world());
  resumed.load_checkpoint(scratch / "saved");
  expect_equal(values_of(again), saved);
  train(again, resumed, 3, 5);
  expect_equal(values_of(again), values_of(script));
  import_safetensors(starting, scratch / "y");
  expect_equal(values_of(imported), saved);

  // The same names as the eager module's.
  Eager eager;
  AdamWScheduleFree of_eager(eager, world());
  import_safetensors(of_eager, scratch / "y");
  for (const auto& item : eager.named_parameters()) {
    EXPECT_TRUE(same_bits(item.value(), saved.at(item.key()))) << item.key();
  }
}

TEST(TorchScript, TakesGroupsOfItsParameters) {
  torch::jit::Module script = scripted();
  NamedParameters weights;
  for (const auto& named : script.attr("layer").toModule().named_parameters()) {
    weights.emplace_back(named.name, named.value);
  }
  SGD optimizer(script, {ParameterGroup(weights)}, world());
  const auto before = values_of(script);
  train(script, optimizer, 0, 2);
  for (const auto& [name, value] : values_of(script)) {
    if (name.find("running") != std::string::npos || name == "norm.num_batches_tracked") continue;
    if (name == "layer.bias") continue;  // the norm takes it out again: its gradient is rounding
    EXPECT_EQ(same_bits(value, before.at(name)), name != "layer.weight") << name;
  }
  expect_error([&] { SGD(script, {ParameterGroup(make_parameters({{2}}))}, world()); },
      {"'p0' of group 0 is not one of the module's"});
}

TEST(TorchScript, WarnsOfWhatWasReplaced) {
  torch::jit::Module script = scripted();
  AdamWScheduleFree optimizer(script, world());
  Warnings warnings;
  optimizer.eval();
  optimizer.train();
  EXPECT_TRUE(warnings.with("changed").empty());
  script.attr("layer").toModule().setattr("weight", at::ones({5, 4}).requires_grad_());
  optimizer.eval();
  EXPECT_EQ(warnings.with("The module has 'layer.weight', which").size(), world()->rank() == 0 ? 1U : 0U);
}

std::vector<at::Tensor> batches_of(int rank) {
  std::vector<at::Tensor> batches;
  for (int i = 0; i <= rank; ++i) batches.push_back(random_like(at::empty({6 + i, 4}), i, rank, 0) + i);
  return batches;
}

TEST(TorchScript, UpdatesBatchNorm) {
  Eager eager;
  torch::jit::Module script = scripted();
  eager.eval();
  script.eval();
  auto batches = batches_of(world()->rank());
  for (int twice = 0; twice < 2; ++twice) {
    update_batch_norm(eager, batches, *world());
    update_batch_norm(script, batches, *world());
    const auto values = values_of(script);
    for (const auto& item : eager.named_buffers()) {
      EXPECT_TRUE(at::allclose(item.value(), values.at(item.key()), 1e-5, 1e-6)) << item.key();
    }
  }
  EXPECT_FALSE(script.attr("norm").toModule().is_training());
}

TEST(TorchScript, UpdatesALayerOfTwoNamesOnce) {
  torch::jit::Module script = scripted(), with_alias = scripted(0.1, true);
  auto batches = batches_of(world()->rank());
  update_batch_norm(script, batches, *world());
  update_batch_norm(with_alias, batches, *world());
  const auto right = values_of(script);
  for (const auto& [name, value] : values_of(with_alias)) {
    if (right.count(name) != 0) {
      EXPECT_TRUE(same_bits(value, right.at(name))) << name;
    }
  }
}

TEST(TorchScript, UpdateBatchNormNeedsToKnowTheMomentum) {
  const bool odd_one = world()->rank() == world()->size() - 1;
  torch::jit::Module script = scripted(odd_one ? 0 : 0.1);
  auto batches = batches_of(world()->rank());
  const auto before = values_of(script);
  expect_error([&] { update_batch_norm(script, batches, *world()); },
      {"rank " + std::to_string(world()->size() - 1), "TorchScript layer 'norm'", "torch.jit.script"});
  if (!odd_one) expect_equal(values_of(script), before);
}

}  // namespace
}  // namespace zerosched::testing
