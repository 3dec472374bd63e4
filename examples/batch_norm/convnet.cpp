// Trains a small convolutional network with BatchNorm on Fashion-MNIST and evaluates it at x twice: with the
// running statistics of training, which were gathered at y and do not fit x, and after
// zerosched::update_batch_norm.

#include "fashion_mnist.h"

#include <mpi.h>
#include <torch/torch.h>
#include <zerosched/zerosched.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <iostream>
#include <vector>

namespace {

struct ConvnetImpl : torch::nn::Module {
  ConvnetImpl() {
    using namespace torch::nn;
    layers = register_module("layers", Sequential());
    int64_t channels = 1;
    const auto block = [&](int64_t out, int64_t stride) {
      layers->push_back(Conv2d(Conv2dOptions(channels, out, 3).stride(stride).padding(1).bias(false)));
      layers->push_back(BatchNorm2d(out));
      layers->push_back(ReLU());
      channels = out;
    };
    for (const int64_t out : {16, 32, 32}) {
      block(out, 2);
      block(out, 1);
      block(out, 1);
    }
    layers->push_back(Flatten());
    layers->push_back(Linear(32 * 4 * 4, 10));
  }
  torch::Tensor forward(const torch::Tensor& images) { return layers->forward(images); }
  torch::nn::Sequential layers{nullptr};
};
TORCH_MODULE(Convnet);

/// Accuracy over the test images, of which every rank takes its part. Collective.
double test_accuracy(const zerosched::Session& session, Convnet& model, const Split& test) {
  const torch::NoGradGuard no_grad;
  const int64_t images = test.labels.size(0);
  const int64_t end = images * (session.rank() + 1) / session.world_size();
  auto correct = torch::zeros({1}, torch::kInt64);
  for (int64_t i = images * session.rank() / session.world_size(); i < end; i += 500) {
    const auto predicted = model->forward(test.images.slice(0, i, std::min(i + 500, end))).argmax(1);
    correct += predicted.eq(test.labels.slice(0, i, std::min(i + 500, end))).sum();
  }
  session.communicator()->all_reduce(correct)->wait();
  return correct.item<double>() / static_cast<double>(images);
}

}  // namespace

int main(int argc, char** argv) {
  zerosched::Session session(argc, argv, zerosched::SessionOptions().backend("mpi"));
  const auto [options, data, exit_code] = set_up(argc, argv);
  if (exit_code) return *exit_code;

  torch::manual_seed(options.seed);
  Convnet model;
  zerosched::AdamWScheduleFree optimizer(
      *model, session.communicator(), zerosched::AdamWScheduleFreeOptions(options.lr).warmup_steps(50));

  const int64_t per_step = options.batch * session.world_size();
  const int64_t steps_per_epoch = data.training.labels.size(0) / per_step;
  int64_t steps = options.epochs * steps_per_epoch;
  if (options.steps > 0) steps = std::min(steps, options.steps);
  torch::Tensor order;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t step_in_epoch = step % steps_per_epoch;
    if (step_in_epoch == 0) order = torch::randperm(data.training.labels.size(0));  // same seed on every rank
    const int64_t first = step_in_epoch * per_step + session.rank() * options.batch;
    const auto batch = order.slice(0, first, first + options.batch);
    optimizer.zero_grad();
    const auto output = model->forward(data.training.images.index_select(0, batch));
    const auto loss =
        torch::nn::functional::cross_entropy(output, data.training.labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    if (session.rank() == 0 && (step + 1) % 100 == 0) {
      std::cerr << "step " << step + 1 << "/" << steps << "  loss " << loss.item<double>() << std::endl;
    }
  }

  const auto evaluation = optimizer.eval_scope();
  model->eval();
  const double stale = test_accuracy(session, model, data.test);
  // 40 batches of 128 images on each rank are enough for means and variances.
  std::vector<torch::Tensor> loader;
  for (int64_t i = 0; i < 40; ++i) {
    const int64_t first =
        (i * session.world_size() + session.rank()) * 128 % (data.training.labels.size(0) - 128);
    loader.push_back(data.training.images.slice(0, first, first + 128));
  }
  zerosched::update_batch_norm(model, loader, *session.communicator());
  const double updated = test_accuracy(session, model, data.test);

  if (session.rank() == 0) {
    std::cout << "test accuracy at x after " << steps << " steps: " << stale
              << " with the statistics of training, " << updated << " after update_batch_norm\n";
    const nlohmann::json report = {{"world_size", session.world_size()}, {"steps", steps},
        {"accuracy_stale", stale}, {"accuracy_updated", updated}};
    if (options.json) std::cout << report << '\n';
  }
  return 0;
}
