// A convolutional network with BatchNorm on Fashion-MNIST.

#include "synchronized_batch_norm.h"
#include "task.h"

#include <zerosched/error.h>
#include <zerosched/update_batch_norm.h>

#include <algorithm>

namespace {

using namespace torch::nn;  // NOLINT(google-build-using-namespace): the layers' names

// For the running statistics of x, with which it is evaluated.
constexpr int64_t kStatisticsBatches = 8;
constexpr int64_t kStatisticsBatch = 512;
constexpr int64_t kQuickEvaluation = 2000;

/// Convolution without bias, BatchNorm, ReLU.
class BlockImpl : public Module {
 public:
  BlockImpl(
      int64_t in, int64_t out, int64_t stride, const std::shared_ptr<zerosched::Communicator>& communicator)
      : convolution(register_module(
            "convolution", Conv2d(Conv2dOptions(in, out, 3).stride(stride).padding(1).bias(false)))),
        norm(register_module("norm", SynchronizedBatchNorm2d(out, communicator))) {}

  torch::Tensor forward(const torch::Tensor& x) { return norm(convolution(x)).relu_(); }

 private:
  Conv2d convolution;
  SynchronizedBatchNorm2d norm;
};
TORCH_MODULE(Block);

class ConvnetImpl : public Module {
 public:
  explicit ConvnetImpl(const std::shared_ptr<zerosched::Communicator>& communicator)
      : block1(register_module("block1", Block(1, 16, 2, communicator))),
        block2(register_module("block2", Block(16, 32, 2, communicator))),
        block3(register_module("block3", Block(32, 32, 1, communicator))),
        head(register_module("head", Linear(32 * 4 * 4, 10))) {}

  /// [n, 1, 28, 28] -> [n, 10] logits.
  torch::Tensor forward(const torch::Tensor& images) {
    const auto x = block3(block2(block1(images)));  // [n, 32, 7, 7]
    return head(
        torch::max_pool2d(x, 2, /*stride=*/2, /*padding=*/0, /*dilation=*/1, /*ceil_mode=*/true).flatten(1));
  }

 private:
  Block block1, block2, block3;
  Linear head;
};
TORCH_MODULE(Convnet);

struct Images {
  torch::Tensor pixels, labels;  // uint8, [n, 28, 28] and [n]

  /// [n, 1, 28, 28] of about zero mean and unit variance over the training images.
  torch::Tensor input(const torch::Tensor& samples) const {
    const auto images = pixels.index_select(0, samples).unsqueeze(1);
    return images.to(torch::get_default_dtype_as_scalartype()).div_(255).sub_(0.286).div_(0.353);
  }
  torch::Tensor target(const torch::Tensor& samples) const {
    return labels.index_select(0, samples).to(torch::kLong);
  }
};

class FashionMnist : public Task {
 public:
  FashionMnist(const Arrays& arrays, const zerosched::Session& session)
      : train_{arrays["train_images"], arrays["train_labels"]},
        test_{arrays["test_images"], arrays["test_labels"]},
        model_(session.communicator()) {}

  torch::nn::Module& module() override { return *model_; }
  int64_t training_samples() const override { return train_.labels.size(0); }
  int64_t evaluation_samples() const override { return test_.labels.size(0); }
  int64_t quick_evaluation_samples() const override { return kQuickEvaluation; }

  Loss loss(const torch::Tensor& samples) override {
    const auto logits = model_(train_.input(samples));
    return {functional::cross_entropy(logits, train_.target(samples)), static_cast<double>(samples.size(0))};
  }

  // The running statistics of training were gathered at y.
  bool prepare_evaluation(const zerosched::Session& session) override {
    const int64_t part = kStatisticsBatch / session.world_size();
    std::vector<torch::Tensor> batches;
    for (int64_t i = 0; i < kStatisticsBatches; ++i) {
      const int64_t first = i * kStatisticsBatch + session.rank() * part;
      batches.push_back(train_.input(torch::arange(first, first + part)));
    }
    try {
      zerosched::update_batch_norm(model_, batches, *session.communicator());
    } catch (const zerosched::Error&) {  // on every rank: statistics that are not finite
      return false;
    }
    return true;
  }

  torch::Tensor evaluate(int64_t first, int64_t end) override {
    auto sums = torch::zeros({2}, torch::kDouble);
    for (int64_t i = first; i < end; i += 500) {
      const auto samples = torch::arange(i, std::min(i + 500, end));
      const auto logits = model_(test_.input(samples));
      const auto labels = test_.target(samples);
      sums[0] += logits.argmax(1).ne(labels).sum();
      sums[1] += functional::cross_entropy(
          logits, labels, functional::CrossEntropyFuncOptions().reduction(torch::kSum));
    }
    return sums;
  }

  std::vector<Metric> metrics(const torch::Tensor& sums, int64_t samples) const override {
    const auto count = static_cast<double>(samples);
    return {{"error", sums[0].item<double>() / count}, {"cross_entropy", sums[1].item<double>() / count}};
  }

 private:
  Images train_, test_;
  Convnet model_;
};

}  // namespace

std::unique_ptr<Task> make_convnet(const Arrays& arrays, const zerosched::Session& session) {
  return std::make_unique<FashionMnist>(arrays, session);
}
