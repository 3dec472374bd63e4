// Logistic regression on the features of printed letters: a convex loss whose minimum is known.

#include "task.h"

#include <torch/nn.h>

#include <algorithm>

namespace {

using namespace torch::nn;  // NOLINT(google-build-using-namespace): the layers' names

constexpr int64_t kLetters = 26;

struct Letters {
  torch::Tensor features, labels;  // [n, 16], [n] int64
};

class LogisticRegression : public Task {
 public:
  explicit LogisticRegression(const Arrays& arrays)
      : train_{arrays.real("train_features"), arrays["train_labels"]},
        test_{arrays.real("test_features"), arrays["test_labels"]},
        optimum_(arrays["optimum"].item<double>()),
        model_(train_.features.size(1), kLetters) {
    init::zeros_(model_->weight);
    init::zeros_(model_->bias);
  }

  Module& module() override { return *model_; }
  int64_t training_samples() const override { return train_.labels.size(0); }
  // Those trained on, whose loss counts, and then those held out, whose errors do.
  int64_t evaluation_samples() const override { return train_.labels.size(0) + test_.labels.size(0); }

  Loss loss(const torch::Tensor& samples) override {
    const auto logits = model_(train_.features.index_select(0, samples));
    return {functional::cross_entropy(logits, train_.labels.index_select(0, samples)),
        static_cast<double>(samples.size(0))};
  }

  torch::Tensor evaluate(int64_t first, int64_t end) override {
    const int64_t trained_on = train_.labels.size(0);
    const auto part = [](const torch::Tensor& tensor, int64_t from, int64_t to) {
      return tensor.slice(0, std::max<int64_t>(from, 0), std::max<int64_t>(to, 0));
    };
    const auto logits = model_(part(train_.features, first, end)).to(torch::kDouble);
    const auto sum = functional::cross_entropy(logits, part(train_.labels, first, end),
        functional::CrossEntropyFuncOptions().reduction(torch::kSum));
    const auto predicted = model_(part(test_.features, first - trained_on, end - trained_on)).argmax(1);
    const auto wrong =
        predicted.ne(part(test_.labels, first - trained_on, end - trained_on)).sum(torch::kDouble);
    return torch::stack({sum, wrong});
  }

  std::vector<Metric> metrics(const torch::Tensor& sums, int64_t /*samples*/) const override {
    return {{"suboptimality", sums[0].item<double>() / static_cast<double>(train_.labels.size(0)) - optimum_},
        {"test_error", sums[1].item<double>() / static_cast<double>(test_.labels.size(0))}};
  }

 private:
  Letters train_, test_;
  double optimum_;  // of the mean loss over the letters trained on
  Linear model_;
};

}  // namespace

std::unique_ptr<Task> make_logistic_regression(const Arrays& arrays) {
  return std::make_unique<LogisticRegression>(arrays);
}
