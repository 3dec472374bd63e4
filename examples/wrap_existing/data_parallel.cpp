// Data-parallel training of a small network on Fashion-MNIST. data_parallel.cpp averages gradients with one
// MPI_Allreduce per parameter, and every rank holds all of the optimizer's state; wrapped.cpp uses zerosched.

#include "fashion_mnist.h"
#include "model.h"

#include <mpi.h>
#include <torch/optim/adamw.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <iostream>

/// Accuracy over the test images, of which every rank takes its part.
double test_accuracy(Net& model, const Split& test, int rank, int world_size) {
  const torch::NoGradGuard no_grad;
  const int64_t images = test.labels.size(0);
  const int64_t end = images * (rank + 1) / world_size;
  int64_t correct = 0;
  for (int64_t i = images * rank / world_size; i < end; i += 500) {
    const auto predicted = model->forward(test.images.slice(0, i, std::min(i + 500, end))).argmax(1);
    correct += predicted.eq(test.labels.slice(0, i, std::min(i + 500, end))).sum().item<int64_t>();
  }
  MPI_Allreduce(MPI_IN_PLACE, &correct, 1, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
  return static_cast<double>(correct) / static_cast<double>(images);
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, world_size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world_size);
  const auto [options, data, exit_code] = set_up(argc, argv);
  if (exit_code) {
    MPI_Finalize();
    return *exit_code;
  }

  torch::manual_seed(options.seed);
  Net model;
  for (auto& parameter : model->parameters()) {
    MPI_Bcast(parameter.data_ptr(), static_cast<int>(parameter.numel()), MPI_FLOAT, 0, MPI_COMM_WORLD);
  }
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(options.lr));

  const int64_t steps_per_epoch = data.training.labels.size(0) / (options.batch * world_size);
  int64_t steps = options.epochs * steps_per_epoch;
  if (options.steps > 0) steps = std::min(steps, options.steps);
  torch::Tensor order, loss;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t step_in_epoch = step % steps_per_epoch;
    if (step_in_epoch == 0) order = torch::randperm(data.training.labels.size(0));  // same seed on every rank
    const int64_t first = (step_in_epoch * world_size + rank) * options.batch;
    const auto batch = order.slice(0, first, first + options.batch);

    optimizer.zero_grad();
    const auto images = data.training.images.index_select(0, batch);
    const auto labels = data.training.labels.index_select(0, batch);
    loss = torch::nn::functional::cross_entropy(model->forward(images), labels);
    loss.backward();
    for (auto& parameter : model->parameters()) {
      auto& gradient = parameter.mutable_grad();
      MPI_Allreduce(MPI_IN_PLACE, gradient.data_ptr(), static_cast<int>(gradient.numel()), MPI_FLOAT, MPI_SUM,
          MPI_COMM_WORLD);
      gradient /= world_size;
    }
    optimizer.step();
    if (rank == 0 && (step + 1) % 200 == 0) {
      std::cerr << "step " << step + 1 << "/" << steps << "  loss " << loss.item<double>() << std::endl;
    }
  }
  const std::chrono::duration<double> train_time = std::chrono::steady_clock::now() - start;

  const double accuracy = test_accuracy(model, data.test, rank, world_size);
  if (rank == 0) {
    std::cout << "test accuracy " << accuracy << " after " << steps << " steps\n";
    const nlohmann::json report = {{"world_size", world_size}, {"steps", steps},
        {"train_s", train_time.count()}, {"last_loss", loss.item<double>()}, {"test_accuracy", accuracy}};
    if (options.json) std::cout << report << '\n';
  }
  MPI_Finalize();
  return 0;
}
