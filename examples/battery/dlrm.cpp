// A deep learning recommendation model (DLRM, arXiv 1906.00091) on InstEval: how students rate lectures.

#include "task.h"

#include <torch/nn.h>

namespace {

using namespace torch::nn;  // NOLINT(google-build-using-namespace): the layers' names

constexpr int64_t kEmbedding = 16;
constexpr int64_t kWidth = 64;

class DlrmImpl : public Module {
 public:
  /// `levels`: how many values each category has, [fields] int64.
  explicit DlrmImpl(const torch::Tensor& levels)
      : offsets(torch::constant_pad_nd(levels.cumsum(0).slice(0, 0, -1), {1, 0})),
        pairs(torch::triu_indices(levels.size(0), levels.size(0), /*offset=*/1)),
        embedding(register_module("embedding", Embedding(levels.sum().item<int64_t>(), kEmbedding))),
        fc1(register_module("fc1", Linear(levels.size(0) * kEmbedding + pairs.size(1), kWidth))),
        fc2(register_module("fc2", Linear(kWidth, kWidth))),
        fc3(register_module("fc3", Linear(kWidth, 1))) {
    init::normal_(embedding->weight, 0, 0.1);
  }

  /// Categories [n, fields] int64 -> [n]: from the embeddings and from the products of each two of them.
  torch::Tensor forward(const torch::Tensor& categories) {
    const auto vectors = embedding(categories + offsets);  // [n, fields, 16]
    const auto products = torch::bmm(vectors, vectors.transpose(1, 2));
    const auto features =
        torch::cat({vectors.flatten(1), products.index({torch::indexing::Slice(), pairs[0], pairs[1]})}, 1);
    return fc3(fc2(fc1(features).relu()).relu()).squeeze(1);
  }

 private:
  torch::Tensor offsets;  // of each category's first value in the table, which is one for all
  torch::Tensor pairs;    // [2, pairs] fields
  Embedding embedding;
  Linear fc1, fc2, fc3;
};
TORCH_MODULE(Dlrm);

struct Ratings {
  torch::Tensor categories, ratings;  // [n, fields] int64, [n] from 1 to 5
};

class Recommender : public Task {
 public:
  explicit Recommender(const Arrays& arrays)
      : train_{arrays["train_categories"].to(torch::kLong), arrays.real("train_ratings")},
        test_{arrays["test_categories"].to(torch::kLong), arrays.real("test_ratings")},
        mean_(train_.ratings.mean().item<double>()),
        model_(arrays["levels"]) {}

  Module& module() override { return *model_; }
  int64_t training_samples() const override { return train_.ratings.size(0); }
  int64_t evaluation_samples() const override { return test_.ratings.size(0); }

  Loss loss(const torch::Tensor& samples) override {
    const auto predicted = model_(train_.categories.index_select(0, samples));
    return {torch::mse_loss(predicted, train_.ratings.index_select(0, samples) - mean_),
        static_cast<double>(samples.size(0))};
  }

  torch::Tensor evaluate(int64_t first, int64_t end) override {
    const auto predicted = model_(test_.categories.slice(0, first, end)) + mean_;
    const auto difference = (predicted - test_.ratings.slice(0, first, end)).to(torch::kDouble);
    return difference.square().sum().view({1});
  }

  std::vector<Metric> metrics(const torch::Tensor& sums, int64_t samples) const override {
    return {{"rmse", (sums[0] / static_cast<double>(samples)).sqrt().item<double>()}};
  }

 private:
  Ratings train_, test_;
  double mean_;  // of the training ratings
  Dlrm model_;
};

}  // namespace

std::unique_ptr<Task> make_dlrm(const Arrays& arrays) { return std::make_unique<Recommender>(arrays); }
