// Whole modules: buffers, frozen parameters, tied weights; checkpoints, exports and imports of them.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/safetensors.h>

#include <torch/nn/cloneable.h>
#include <torch/nn/functional/linear.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

namespace zerosched::testing {
namespace {

// A frozen layer, BatchNorm with its buffers, dropout, and an output layer tied to the input layer.
struct NetImpl : torch::nn::Cloneable<NetImpl> {
  NetImpl() { reset(); }
  void reset() override {
    input = register_module("input", torch::nn::Linear(torch::nn::LinearOptions(8, 8).bias(false)));
    norm = register_module("norm", torch::nn::BatchNorm1d(8));
    frozen = register_module("frozen", torch::nn::Linear(8, 8));
    dropout = register_module("dropout", torch::nn::Dropout(0.3));
    output = register_parameter("output", input->weight);
    for (auto& parameter : frozen->parameters()) parameter.requires_grad_(false);
  }
  at::Tensor forward(const at::Tensor& x) {
    return torch::nn::functional::linear(dropout(frozen(norm(input(x)).relu())), output);
  }
  torch::nn::Linear input{nullptr}, frozen{nullptr};
  at::Tensor output;
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Dropout dropout{nullptr};
};
TORCH_MODULE(Net);

at::Generator default_generator() { return at::detail::getDefaultCPUGenerator(); }

Net make_net(uint64_t seed) {
  default_generator().set_current_seed(seed);
  return Net();
}

void train(Net& net, ShardedOptimizer& optimizer, int64_t first, int64_t end) {
  for (int64_t step = first; step < end; ++step) {
    const at::Tensor batch = random_like(at::empty({16, 8}), step, world()->rank(), 0);
    optimizer.zero_grad();
    (net->forward(batch) - batch).square().mean().backward();
    optimizer.step();
  }
}

std::map<std::string, at::Tensor> everything(const Net& net) {
  std::map<std::string, at::Tensor> values;
  for (const auto& item : net->named_parameters()) values[item.key()] = item.value().detach().clone();
  for (const auto& item : net->named_buffers()) values[item.key()] = item.value().detach().clone();
  return values;
}

void expect_equal(const std::map<std::string, at::Tensor>& a, const std::map<std::string, at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, value] : a) EXPECT_TRUE(same_bits(value, b.at(name))) << name;
}

CheckpointExtra rng_state() {
  CheckpointExtra extra;
  extra.local.tensors["rng"] = default_generator().get_state();
  return extra;
}

TEST(Modules, ResumedTrainingContinuesBitForBit) {
  const Scratch scratch;
  Net net = make_net(1);
  AdamWScheduleFree optimizer(*net, world(), AdamWScheduleFreeOptions(0.01).warmup_steps(5));
  default_generator().set_current_seed(100 + static_cast<uint64_t>(world()->rank()));
  train(net, optimizer, 0, 4);
  optimizer.save_checkpoint(scratch / "step_4", rng_state());
  train(net, optimizer, 4, 8);

  Net again = make_net(2);
  AdamWScheduleFree resumed(*again, world(), AdamWScheduleFreeOptions(0.5));
  const CheckpointExtra extra = resumed.load_checkpoint(scratch / "step_4");
  default_generator().set_state(extra.local.tensors.at("rng"));
  train(again, resumed, 4, 8);
  expect_same_bits(full_state(resumed), full_state(optimizer));
  // BatchNorm's running statistics are each rank's own.
  for (const auto& [name, value] : everything(net)) {
    if (name.find("norm.running") != std::string::npos) continue;
    EXPECT_TRUE(same_bits(value, everything(again).at(name))) << name;
  }
}

TEST(Modules, ExportsTheWholeModuleAndImportsIt) {
  const Scratch scratch;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Net net = make_net(1);
    net->to(dtype);
    AdamWScheduleFree optimizer(*net, world(), AdamWScheduleFreeOptions(0.01), buckets_of(100));
    for (int64_t step = 0; step < 3; ++step) {
      net->forward(random_like(at::empty({16, 8}, dtype), step, 0, 0)).square().mean().backward();
      optimizer.step();
    }
    export_safetensors(optimizer, scratch / "x.safetensors");
    export_safetensors(optimizer, scratch / "y.safetensors", "y");
    const auto at_y = everything(net);
    optimizer.eval();
    const auto at_x = everything(net);

    Net other = make_net(2);
    other->to(dtype);
    AdamWScheduleFree starting(*other, world(), AdamWScheduleFreeOptions(0.01));
    import_safetensors(starting, scratch / "x.safetensors");
    expect_equal(everything(other), at_x);
    for (const char* which : {"z", "x"}) {
      for (const auto& [name, value] : starting.full_state(which)) {
        EXPECT_TRUE(same_bits(value.to(dtype), at_x.at(name))) << which << " of " << name;
      }
    }
    import_safetensors(starting, scratch / "y.safetensors");
    expect_equal(everything(other), at_y);
  }
}

NamedParameters named(const Net& net, const std::vector<std::string>& names) {
  NamedParameters found;
  for (const std::string& name : names) found.emplace_back(name, net->named_parameters()[name]);
  return found;
}

// Two optimizers of one module, each over its part of it.
TEST(Modules, LeaveToOtherOptimizersWhatTheyTrain) {
  const Scratch scratch;
  const auto options = AdamWScheduleFreeOptions(0.1);
  Net net = make_net(1);
  AdamWScheduleFree first(
      *net, {ParameterGroup(named(net, {"input.weight"}))}, world(), options, buckets_of(100));
  AdamWScheduleFree second(
      *net, {ParameterGroup(named(net, {"norm.weight", "norm.bias"}))}, world(), options);
  export_safetensors(first, scratch / "start.safetensors");  // x and y are one yet
  for (int64_t step = 0; step < 3; ++step) {
    const at::Tensor batch = random_like(at::empty({16, 8}), step, world()->rank(), 0);
    (net->forward(batch) - batch).square().mean().backward();
    first.step();
    second.step();
    first.zero_grad();
    second.zero_grad();
  }
  const auto export_at_x = [&] { export_safetensors(first, scratch / "x.safetensors"); };
  expect_error(export_at_x, {"'norm.weight' is trained by another optimizer", "eval()"});
  export_safetensors(first, scratch / "y.safetensors", "y");
  second.eval();
  export_at_x();
  second.train();

  const State before = full_state(second);
  const at::Tensor frozen = net->frozen->weight.detach().clone();
  {
    const at::NoGradGuard no_grad;
    net->frozen->weight.fill_(7);
  }
  import_safetensors(first, scratch / "start.safetensors");
  expect_same_bits(full_state(second), before);
  expect_parameters_are(named(net, {"norm.weight", "norm.bias"}), before.at("y"));
  EXPECT_TRUE(same_bits(net->frozen->weight, frozen));
  second.step();
}

TEST(Modules, ImportsOtherDtypes) {
  const Scratch scratch;
  Net net = make_net(1);
  net->to(at::kBFloat16);
  AdamWScheduleFree optimizer(*net, world());
  export_safetensors(optimizer, scratch / "bf16.safetensors");
  Net other = make_net(2);
  AdamWScheduleFree starting(*other, world());
  import_safetensors(starting, scratch / "bf16.safetensors");
  for (const auto& [name, value] : everything(net)) {
    EXPECT_TRUE(same_bits(value.to(everything(other).at(name).scalar_type()), everything(other).at(name)))
        << name;
  }
}

}  // namespace
}  // namespace zerosched::testing
