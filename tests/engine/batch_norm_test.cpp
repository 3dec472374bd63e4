// Running statistics recomputed over a loader: the same on all ranks, and nothing else of the module changed.
#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/update_batch_norm.h>

#include <torch/data/example.h>
#include <torch/nn/modules/batchnorm.h>
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
  return {net->first->running_mean, net->first->running_var, net->second->running_mean, net->second->running_var};
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

TEST(UpdateBatchNorm, TakesExamplesAndModules) {
  Net net, other;
  auto batches = batches_of(world()->rank());
  std::vector<torch::data::Example<>> examples;
  for (const at::Tensor& batch : batches) examples.emplace_back(batch, at::zeros({1}));
  update_batch_norm(net, batches, *world());
  update_batch_norm(*other, examples, *world());
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(same_bits(statistics(net)[i], statistics(other)[i]));
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

}  // namespace
}  // namespace zerosched::testing
