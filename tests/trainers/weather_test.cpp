// A weather emulator. Every rank averages the loss over the samples of its own batch, whose size depends on where its
// files end: ranks with 7 and 3 samples, and epochs in which they run out of batches at different steps. Rank 0 saves one
// file. What comes out must be what one process gets that has all samples of a step in one batch.
#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"
#include "trainers/plain.h"

#include <zerosched/safetensors.h>

#include <torch/nn.h>
#include <unistd.h>

#include <filesystem>

namespace zerosched::testing {
namespace {

constexpr double kLr = 0.01;
constexpr int kEpochs = 3;

/// The change of two fields over a time step, on a circle of grid points.
struct EmulatorImpl : torch::nn::Module {
  EmulatorImpl() {
    const auto periodic = [](int64_t in, int64_t out) {
      return torch::nn::Conv1dOptions(in, out, 3).padding(1).padding_mode(torch::kCircular);
    };
    encode = register_module("encode", torch::nn::Conv1d(periodic(2, 8)));
    decode = register_module("decode", torch::nn::Conv1d(periodic(8, 2)));
  }
  at::Tensor forward(const at::Tensor& fields) {
    return fields + decode->forward(torch::tanh(encode->forward(fields)));
  }
  torch::nn::Conv1d encode{nullptr}, decode{nullptr};
};
TORCH_MODULE(Emulator);

struct Batch {
  at::Tensor now, next;  ///< [samples, 2 fields, 16 grid points]
  int64_t size() const { return now.size(0); }
};

/// The samples per batch of an epoch: other numbers, and another number of them, on every rank.
std::vector<int64_t> batch_sizes(int rank) {
  static const std::vector<int64_t> sizes[] = {{7, 7, 7, 4}, {3, 3, 3, 3, 3, 1}, {5, 2}};
  return sizes[rank];
}

Batch batch(int rank, int epoch, size_t step) {
  const at::Tensor now =
      random_like(at::empty({batch_sizes(rank)[step], 2, 16}), epoch * 100 + step, rank, 0);
  return {now, now.roll(1, 2) * 0.9};
}

// What follows up to the reference is the trainer.

/// Returns the mean loss over all samples of all ranks.
double train_epoch(Emulator& model, AdamWScheduleFree& optimizer, int epoch) {
  const auto communicator = optimizer.communicator();
  const int rank = communicator->rank();
  const at::Tensor sums = at::zeros({2}, at::kDouble);  // of the loss, of samples
  for (size_t step = 0; step < batch_sizes(rank).size(); ++step) {
    const Batch samples = batch(rank, epoch, step);
    optimizer.zero_grad();
    optimizer.step_weight(static_cast<double>(samples.size()));
    const at::Tensor loss = at::mse_loss(model->forward(samples.now), samples.next);
    loss.backward();
    optimizer.step();
    sums[0] += loss.detach() * samples.size();
    sums[1] += samples.size();
  }
  optimizer.join();
  communicator->all_reduce(sums)->wait();
  return (sums[0] / sums[1]).item<double>();
}

// The reference: one process, in float64.

double train_plain_epoch(Emulator& model, PlainScheduleFree& optimizer, int ranks, int epoch, bool weighted) {
  double sum = 0, samples = 0;
  for (size_t step = 0;; ++step) {
    at::Tensor loss;
    double step_samples = 0, step_ranks = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      if (step >= batch_sizes(rank).size()) continue;
      const Batch of_rank = batch(rank, epoch, step);
      const auto weight = weighted ? static_cast<double>(of_rank.size()) : 1;
      const at::Tensor mean =
          at::mse_loss(model->forward(of_rank.now.to(at::kDouble)), of_rank.next.to(at::kDouble));
      loss = loss.defined() ? loss + weight * mean : weight * mean;
      sum += mean.item<double>() * static_cast<double>(of_rank.size());
      samples += static_cast<double>(of_rank.size());
      step_samples += weight;
      ++step_ranks;
    }
    if (step_ranks == 0) return sum / samples;
    optimizer.zero_grad();
    (loss / step_samples).backward();
    optimizer.step();
  }
}

Emulator make_emulator(at::ScalarType dtype) {
  torch::manual_seed(3);
  Emulator model;
  model->to(dtype);
  return model;
}

/// Collective.
std::string temporary_folder() {
  return gather_texts(
      std::filesystem::temp_directory_path() / ("zerosched_weather_" + std::to_string(getpid())))[0];
}

void train_and_compare(bool overlap_backward) {
  Emulator model = make_emulator(at::kFloat), plain_model = make_emulator(at::kDouble);
  AdamWScheduleFree optimizer(
      *model, world(), AdamWScheduleFreeOptions(kLr), buckets_of(200).overlap_backward(overlap_backward));
  PlainScheduleFree plain(parameters_of(*plain_model), kLr);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const double loss = train_epoch(model, optimizer, epoch);
    EXPECT_NEAR(loss, train_plain_epoch(plain_model, plain, world()->size(), epoch, true), 1e-5 * loss);
  }
  expect_close(full_state(optimizer), plain.reference(), 1e-4);
}

TEST(Weather, UnevenBatchesTrainAsOneBatch) { train_and_compare(true); }
TEST(Weather, UnevenBatchesTrainAsOneBatchWithoutHooks) { train_and_compare(false); }

// The tolerance above tells the mean over samples from the mean over ranks.
TEST(Weather, TheMeanOverRanksIsSomethingElse) {
  Emulator right_model = make_emulator(at::kDouble), wrong_model = make_emulator(at::kDouble);
  PlainScheduleFree right(parameters_of(*right_model), kLr), wrong(parameters_of(*wrong_model), kLr);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    train_plain_epoch(right_model, right, 2, epoch, true);
    train_plain_epoch(wrong_model, wrong, 2, epoch, false);
  }
  const at::Tensor x = right.reference().x("encode.weight");
  EXPECT_GT((wrong.reference().x("encode.weight") - x).abs().max().item<double>(),
      1e-2 * x.abs().max().item<double>());
}

TEST(Weather, RankZeroSavesOneFile) {
  const std::string folder = temporary_folder();
  if (world_rank() == 0) std::filesystem::create_directories(folder);
  Emulator model = make_emulator(at::kFloat);
  AdamWScheduleFree optimizer(*model, world(), AdamWScheduleFreeOptions(kLr));
  train_epoch(model, optimizer, 0);
  export_safetensors(optimizer, folder + "/emulator.safetensors");

  Emulator loaded;
  AdamWScheduleFree of_loaded(*loaded, world());
  import_safetensors(of_loaded, folder + "/emulator.safetensors");
  expect_parameters_are(parameters_of(*loaded), optimizer.full_state("x"));
  world_barrier();
  if (world_rank() == 0) {
    const std::filesystem::directory_iterator files(folder);
    EXPECT_EQ(std::distance(begin(files), end(files)), 1);
    std::filesystem::remove_all(folder);
  }
}

}  // namespace
}  // namespace zerosched::testing
