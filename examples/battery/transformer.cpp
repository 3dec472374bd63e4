// A byte-level GPT on the King James Bible: what comes next, in nats per byte.

#include "task.h"

#include <torch/nn.h>

namespace {

using namespace torch::nn;  // NOLINT(google-build-using-namespace): the layers' names

constexpr int64_t kWidth = 64;
constexpr int64_t kLayers = 2;
constexpr int64_t kHeads = 4;
constexpr int64_t kContext = 64;
constexpr int64_t kEvaluationWindows = 512;

class BlockImpl : public Module {
 public:
  BlockImpl()
      : ln1(register_module("ln1", LayerNorm(LayerNormOptions({kWidth})))),
        ln2(register_module("ln2", LayerNorm(LayerNormOptions({kWidth})))),
        qkv(register_module("qkv", Linear(kWidth, 3 * kWidth))),
        proj(register_module("proj", Linear(kWidth, kWidth))),
        fc1(register_module("fc1", Linear(kWidth, 4 * kWidth))),
        fc2(register_module("fc2", Linear(4 * kWidth, kWidth))) {}

  torch::Tensor forward(torch::Tensor x) {  // [batch, context, width]
    x = x + proj(attention(qkv(ln1(x))));
    return x + fc2(torch::gelu(fc1(ln2(x))));
  }

 private:
  static torch::Tensor attention(const torch::Tensor& rows) {  // [batch, context, 3 * width]
    const int64_t batch = rows.size(0), context = rows.size(1);
    const auto heads =
        rows.view({batch, context, 3, kHeads, kWidth / kHeads}).permute({2, 0, 3, 1, 4}).unbind(0);
    return at::scaled_dot_product_attention(heads[0], heads[1], heads[2], /*attn_mask=*/{}, /*dropout_p=*/0.0,
        /*is_causal=*/true)
        .transpose(1, 2)
        .reshape({batch, context, kWidth});
  }

  LayerNorm ln1, ln2;
  Linear qkv, proj, fc1, fc2;
};
TORCH_MODULE(Block);

/// Pre-LayerNorm, learned positions, untied head.
class GptImpl : public Module {
 public:
  explicit GptImpl(int64_t vocabulary)
      : tok(register_module("tok", Embedding(vocabulary, kWidth))),
        pos(register_module("pos", Embedding(kContext, kWidth))),
        blocks(register_module("blocks", ModuleList())),
        ln(register_module("ln", LayerNorm(LayerNormOptions({kWidth})))),
        head(register_module("head", Linear(kWidth, vocabulary))) {
    for (int64_t i = 0; i < kLayers; ++i) blocks->push_back(Block());
    for (const auto& embedding : {tok, pos}) init::normal_(embedding->weight, 0, 0.02);
  }

  /// [batch, context] int64 -> [batch, context, vocabulary] logits.
  torch::Tensor forward(const torch::Tensor& bytes) {
    auto x = tok(bytes) + pos(torch::arange(bytes.size(1)));
    for (const auto& block : *blocks) x = block->as<Block>()->forward(x);
    return head(ln(x));
  }

 private:
  Embedding tok, pos;
  ModuleList blocks;
  LayerNorm ln;
  Linear head;
};
TORCH_MODULE(Gpt);

class KingJames : public Task {
 public:
  explicit KingJames(const Arrays& arrays)
      : train_(arrays["train"]), test_(arrays["test"]), model_(arrays["symbols"].size(0)) {}

  Module& module() override { return *model_; }
  // A sample is a window, by the position of its first byte; after its last one comes the last target.
  int64_t training_samples() const override { return train_.size(0) - kContext; }
  int64_t evaluation_samples() const override { return kEvaluationWindows; }

  Loss loss(const torch::Tensor& samples) override {
    return {cross_entropy(train_, samples, torch::kMean), static_cast<double>(samples.size(0))};
  }

  torch::Tensor evaluate(int64_t first, int64_t end) override {
    // Evenly spaced over the held-out text.
    const int64_t last = test_.size(0) - kContext - 1;
    const auto starts = (torch::arange(first, end) * last).floor_divide(kEvaluationWindows - 1);
    return cross_entropy(test_, starts, torch::kSum).to(torch::kDouble).view({1});
  }

  std::vector<Metric> metrics(const torch::Tensor& sums, int64_t samples) const override {
    return {{"nats_per_byte", sums[0].item<double>() / static_cast<double>(samples * kContext)}};
  }

 private:
  template <typename Reduction>
  torch::Tensor cross_entropy(const torch::Tensor& text, const torch::Tensor& starts, Reduction reduction) {
    const auto windows = text.take(starts.unsqueeze(1) + torch::arange(kContext + 1)).to(torch::kLong);
    const auto logits = model_(windows.slice(1, 0, kContext)).flatten(0, 1);
    return functional::cross_entropy(
        logits, windows.slice(1, 1).flatten(), functional::CrossEntropyFuncOptions().reduction(reduction));
  }

  torch::Tensor train_, test_;  // uint8, indices of symbols
  Gpt model_;
};

}  // namespace

std::unique_ptr<Task> make_transformer(const Arrays& arrays) { return std::make_unique<KingJames>(arrays); }
