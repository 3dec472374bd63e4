// Running statistics recomputed over a loader: the same on all ranks, and nothing else of the module changed.
#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/update_batch_norm.h>

#include <torch/data/example.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <stdexcept>

namespace zerosched::testing {
namespace {

struct NetImpl : torch::nn::Module {
  NetImpl() {
    torch::manual_seed(1);
    first = register_module("first", torch::nn::BatchNorm1d(torch::nn::BatchNorm1dOptions(5).momentum(0.3)));
    linear = register_module("linear", torch::nn::Linear(5, 4));
    second = register_module("second", torch::nn::BatchNorm1d(4));
    stateless = register_module(
        "stateless", torch::nn::BatchNorm1d(torch::nn::BatchNorm1dOptions(4).track_running_stats(false)));
    eval();
  }
  at::Tensor forward(const at::Tensor& input) {
    if (input.size(0) == 13) throw std::runtime_error("thirteen samples");
    return stateless(second(linear(first(input))));
  }
  torch::nn::BatchNorm1d first{nullptr}, second{nullptr}, stateless{nullptr};
  torch::nn::Linear linear{nullptr};
};
TORCH_MODULE(Net);

std::vector<at::Tensor> batches_of(int rank) {
  std::vector<at::Tensor> batches;
  for (int i = 0; i <= rank; ++i) {  // ranks have different numbers of them
    batches.push_back(random_like(at::empty({6 + i, 5}), i, rank, 0) * (1 + rank) + i);
  }
  return batches;
}

std::vector<at::Tensor> statistics(const Net& net) {
  return {
      net->first->running_mean, net->first->running_var, net->second->running_mean, net->second->running_var};
}

TEST(UpdateBatchNorm, AveragesOverTheBatchesOfAllRanks) {
  Net net;
  auto batches = batches_of(world()->rank());
  update_batch_norm(net, batches, *world());

  std::vector<at::Tensor> means, vars;
  for (int rank = 0; rank < world()->size(); ++rank) {
    for (const at::Tensor& batch : batches_of(rank)) {
      means.push_back(batch.mean(0));
      vars.push_back(batch.var(0));
    }
  }
  EXPECT_TRUE(at::allclose(net->first->running_mean, at::stack(means).mean(0), 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(net->first->running_var, at::stack(vars).mean(0), 1e-5, 1e-6));
  EXPECT_EQ(net->first->num_batches_tracked.item<int64_t>(), static_cast<int64_t>(means.size()));

  std::string bytes;
  for (const at::Tensor& tensor : statistics(net)) {
    bytes.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  }
  for (const std::string& other : gather_texts(bytes)) EXPECT_EQ(other, bytes);
  EXPECT_FALSE(net->is_training());
  EXPECT_FALSE(net->first->is_training());
  EXPECT_EQ(net->first->options.momentum(), 0.3);
}

TEST(UpdateBatchNorm, ALayerOfTwoNamesIsOne) {
  Net net, with_alias;
  with_alias->register_module("alias", with_alias->first.ptr());
  auto batches = batches_of(world()->rank());
  update_batch_norm(net, batches, *world());
  update_batch_norm(with_alias, batches, *world());
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(same_bits(statistics(with_alias)[i], statistics(net)[i]));
  EXPECT_FALSE(with_alias->first->is_training());
  EXPECT_EQ(with_alias->first->options.momentum(), 0.3);
}

TEST(UpdateBatchNorm, TakesExamplesAndModules) {
  Net net, other;
  auto batches = batches_of(world()->rank());
  std::vector<torch::data::Example<>> examples;
  for (const at::Tensor& batch : batches) examples.emplace_back(batch, at::zeros({1}));
  update_batch_norm(net, batches, *world());
  update_batch_norm(*other, examples, *world());
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(same_bits(statistics(net)[i], statistics(other)[i]));
}

/// BatchNorm of every kind, deep in containers.
struct NestedImpl : torch::nn::Module {
  NestedImpl() {
    using namespace torch::nn;
    torch::manual_seed(1);
    blocks = register_module("blocks", ModuleList());
    blocks->push_back(Sequential(Conv2d(1, 3, 3), BatchNorm2d(3), Conv2d(3, 2, 1), BatchNorm2d(2)));
    blocks->push_back(BatchNorm3d(1));
    last = register_module("last", BatchNorm1d(2));
  }
  at::Tensor forward(const at::Tensor& images) {
    const at::Tensor features = blocks[0]->as<torch::nn::Sequential>()->forward(images);
    const at::Tensor volume = blocks[1]->as<torch::nn::BatchNorm3d>()->forward(features.unsqueeze(1));
    return last(volume.squeeze(1).mean({2, 3}));
  }
  torch::nn::ModuleList blocks{nullptr};
  torch::nn::BatchNorm1d last{nullptr};
};
TORCH_MODULE(Nested);

std::map<std::string, at::Tensor> buffers_of(const torch::nn::Module& module) {
  std::map<std::string, at::Tensor> buffers;
  for (const auto& item : module.named_buffers()) buffers[item.key()] = item.value().clone();
  return buffers;
}

// In eval_scope the statistics are those of x: of a plain module that holds x.
TEST(UpdateBatchNorm, InEvalScopeGivesTheStatisticsOfX) {
  Nested net;
  AdamWScheduleFree optimizer(*net, world(), AdamWScheduleFreeOptions(0.05));
  const auto images = [](int64_t step, int rank) {
    return random_like(at::empty({6, 1, 7, 7}), step, rank, 3);
  };
  for (int64_t step = 0; step < 4; ++step) {
    optimizer.zero_grad();
    const at::Tensor input = images(step, world()->rank());
    (net->forward(input) - input.flatten(1).narrow(1, 0, 2)).square().sum().backward();
    optimizer.step();
  }
  std::vector<at::Tensor> loader = {images(10, world()->rank()), images(11, world()->rank())};
  const auto x = optimizer.full_state("x");
  const auto y = optimizer.full_state("y");
  const auto at_y = [&] {
    update_batch_norm(net, loader, *world());
    return buffers_of(*net);
  }();
  std::map<std::string, at::Tensor> at_x;
  {
    const auto evaluation = optimizer.eval_scope();
    update_batch_norm(net, loader, *world());
    at_x = buffers_of(*net);
  }
  for (const auto& item : net->named_parameters()) {
    EXPECT_TRUE(same_bits(item.value(), y.at(item.key()))) << item.key();
    EXPECT_FALSE(item.value().grad().defined()) << "a forward pass without gradients";
  }

  Nested plain;
  {
    const at::NoGradGuard no_grad;
    for (auto& item : plain->named_parameters()) item.value().copy_(x.at(item.key()));
  }
  update_batch_norm(plain, loader, *world());
  const auto expected = buffers_of(*plain);
  ASSERT_EQ(at_x.size(), 12U);
  for (const auto& [name, buffer] : at_x) EXPECT_TRUE(same_bits(buffer, expected.at(name))) << name;
  EXPECT_FALSE(same_bits(at_x.at("last.running_mean"), at_y.at("last.running_mean")))
      << "x and y are the same";

  std::string bytes;
  for (const auto& named : at_x) {
    bytes.append(static_cast<const char*>(named.second.const_data_ptr()), named.second.nbytes());
  }
  for (const std::string& other : gather_texts(bytes)) EXPECT_EQ(other, bytes);
  optimizer.zero_grad();
  net->forward(images(5, world()->rank())).sum().backward();
  optimizer.step();
}

struct PlainNet : torch::nn::Module {
  PlainNet() { register_module("norm", norm); }
  at::Tensor forward(const at::Tensor& input) { return norm(input); }
  torch::nn::BatchNorm1d norm{5};
};

TEST(UpdateBatchNorm, TakesAModuleOnTheStackAndALayerAlone) {
  PlainNet net;
  torch::nn::BatchNorm1d layer(5);
  auto batches = batches_of(world()->rank());
  update_batch_norm(net, batches, *world());
  update_batch_norm(layer, batches, *world());
  EXPECT_TRUE(same_bits(net.norm->running_mean, layer->running_mean));
  EXPECT_FALSE(layer->running_mean.eq(0).any().item<bool>());
  std::vector<at::Tensor> none;
  expect_error([&] { update_batch_norm(net, none, *world()); }, {"layer 'norm'"});
}

TEST(UpdateBatchNorm, AFailingForwardOfOneRankIsTheErrorOfAll) {
  Net net;
  net->first->running_mean.fill_(3);
  auto batches = batches_of(world()->rank());
  const int last = world()->size() - 1;
  if (world()->rank() == last) batches.push_back(at::zeros({13, 5}));
  expect_error([&] { update_batch_norm(net, batches, *world()); },
      {"rank " + std::to_string(last) + ": thirteen samples"});
  EXPECT_EQ(net->first->running_mean[0].item<double>(), 3);
  EXPECT_EQ(net->second->running_var[0].item<double>(), 1);
  EXPECT_FALSE(net->first->is_training());
}

TEST(UpdateBatchNorm, NoBatchAtAllIsAnError) {
  Net net;
  std::vector<at::Tensor> none;
  expect_error([&] { update_batch_norm(net, none, *world()); }, {"layer 'first'", "loader"});
  EXPECT_EQ(net->first->running_var[0].item<double>(), 1);
}

TEST(UpdateBatchNorm, ARankWithoutBatchesGetsTheStatisticsOfTheOthers) {
  if (world()->size() == 1) return;
  Net net;
  std::vector<at::Tensor> batches;
  if (world()->rank() == 0) batches = batches_of(0);
  update_batch_norm(net, batches, *world());
  EXPECT_TRUE(at::allclose(net->first->running_mean, batches_of(0)[0].mean(0), 1e-5, 1e-6));
}

/// InstanceNorm has a momentum always, and LibTorch does not count its batches.
struct InstancesImpl : torch::nn::Module {
  InstancesImpl() {
    using Options = torch::nn::InstanceNorm1dOptions;
    first = register_module(
        "first", torch::nn::InstanceNorm1d(Options(3).track_running_stats(true).momentum(0.3)));
    second = register_module(
        "second", torch::nn::InstanceNorm2d(torch::nn::InstanceNorm2dOptions(3).track_running_stats(true)));
    stateless = register_module("stateless", torch::nn::InstanceNorm1d(Options(3)));
    eval();
  }
  at::Tensor forward(const at::Tensor& input) {
    const at::Tensor normal = stateless(first(input)) * 2;
    return input.size(0) == 4 ? second(normal.unsqueeze(3)) : normal;
  }
  torch::nn::InstanceNorm1d first{nullptr}, stateless{nullptr};
  torch::nn::InstanceNorm2d second{nullptr};
};
TORCH_MODULE(Instances);

TEST(UpdateBatchNorm, AveragesInstanceNormTheSameWay) {
  const auto batches_of_rank = [](int rank) {
    std::vector<at::Tensor> batches;
    for (int i = 0; i <= rank + 1; ++i) {
      batches.push_back(random_like(at::empty({4 + i, 3, 7}), i, rank, 0) * (1 + rank) + i);
    }
    return batches;
  };
  Instances net;
  auto batches = batches_of_rank(world()->rank());
  update_batch_norm(net, batches, *world());
  std::vector<at::Tensor> means, vars;
  for (int rank = 0; rank < world()->size(); ++rank) {
    for (const at::Tensor& batch : batches_of_rank(rank)) {
      means.push_back(batch.mean(2).mean(0));  // of each instance, then over the batch
      vars.push_back(batch.var(2).mean(0));
    }
  }
  EXPECT_TRUE(at::allclose(net->first->running_mean, at::stack(means).mean(0), 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(net->first->running_var, at::stack(vars).mean(0), 1e-5, 1e-6));
  EXPECT_EQ(net->first->num_batches_tracked.item<int64_t>(), 0);
  EXPECT_EQ(net->first->options.momentum(), 0.3);
  EXPECT_FALSE(net->first->is_training());
  // Reached by the first batch of each rank only. Its input is normal, but for the unbiased variance, times 2.
  EXPECT_TRUE(at::allclose(net->second->running_mean, at::zeros({3}), 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(net->second->running_var, at::full({3}, 4.0 * 7 / 6), 1e-3, 1e-3));
  std::string bytes;
  for (const auto& named : buffers_of(*net)) {
    bytes.append(static_cast<const char*>(named.second.const_data_ptr()), named.second.nbytes());
  }
  for (const std::string& other : gather_texts(bytes)) EXPECT_EQ(other, bytes);
}

TEST(UpdateBatchNorm, InstanceNormKeepsItsStatisticsWhereABatchIsMissing) {
  Instances net;
  std::vector<at::Tensor> batches = {at::ones({5, 3, 7})};  // never reaches the second layer
  expect_error([&] { update_batch_norm(net, batches, *world()); }, {"layer 'second'", "batch"});
  EXPECT_EQ(net->first->running_mean[0].item<double>(), 0);
  EXPECT_EQ(net->first->running_var[0].item<double>(), 1);
  EXPECT_EQ(net->first->options.momentum(), 0.3);
}

}  // namespace
}  // namespace zerosched::testing
