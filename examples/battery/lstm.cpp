// An LSTM encoder and decoder from the letters of a word to its phonemes (CMUdict).

#include "task.h"

#include <torch/nn.h>

namespace {

using namespace torch::nn;  // NOLINT(google-build-using-namespace): the layers' names

constexpr int64_t kLetters = 27;   // 0: padding
constexpr int64_t kPhonemes = 41;  // 0: padding, and what the decoder begins with; 40: the end of the word
constexpr int64_t kEmbedding = 32;
constexpr int64_t kWidth = 96;
constexpr int64_t kEvaluationWords = 2048;

class EncoderDecoderImpl : public Module {
 public:
  EncoderDecoderImpl()
      : letters(register_module("letters", Embedding(kLetters, kEmbedding))),
        phonemes(register_module("phonemes", Embedding(kPhonemes, kEmbedding))),
        encoder(register_module("encoder", LSTM(LSTMOptions(kEmbedding, kWidth).batch_first(true)))),
        decoder(register_module("decoder", LSTM(LSTMOptions(kEmbedding, kWidth).batch_first(true)))),
        head(register_module("head", Linear(kWidth, kPhonemes))) {}

  /// Words [n, 12] and the phonemes that precede each to be told [n, 13], both int64 -> logits [n, 13, 41]. Words are
  /// right-aligned, so that the encoder's last state has seen all of each.
  torch::Tensor forward(const torch::Tensor& words, const torch::Tensor& preceding) {
    const auto state = std::get<1>(encoder(letters(words)));
    return head(std::get<0>(decoder(phonemes(preceding), state)));
  }

 private:
  Embedding letters, phonemes;
  LSTM encoder, decoder;
  Linear head;
};
TORCH_MODULE(EncoderDecoder);

struct Words {
  torch::Tensor letters, phonemes;  // uint8, [n, 12] and [n, 13]
};

class Lstm : public Task {
 public:
  explicit Lstm(const Arrays& arrays)
      : train_{arrays["train_letters"], arrays["train_phonemes"]},
        test_{arrays["test_letters"], arrays["test_phonemes"]} {}

  Module& module() override { return *model_; }
  int64_t training_samples() const override { return train_.letters.size(0); }
  int64_t evaluation_samples() const override { return kEvaluationWords; }

  Loss loss(const torch::Tensor& samples) override {
    const auto [logits, targets] = predict(train_, samples);
    const auto sum = cross_entropy(logits, targets);
    const auto count = targets.ne(0).sum().item<double>();
    return {sum / count, count};
  }

  torch::Tensor evaluate(int64_t first, int64_t end) override {
    // Evenly spaced over those held out.
    const auto words = (torch::arange(first, end) * test_.letters.size(0)).floor_divide(kEvaluationWords);
    const auto [logits, targets] = predict(test_, words);
    const auto counts = targets.ne(0);
    const auto wrong = logits.argmax(1).ne(targets).logical_and(counts);
    return torch::stack({cross_entropy(logits, targets).to(torch::kDouble), wrong.sum(torch::kDouble),
        counts.sum(torch::kDouble)});
  }

  std::vector<Metric> metrics(const torch::Tensor& sums, int64_t /*samples*/) const override {
    const auto count = sums[2].item<double>();
    return {{"nats_per_phoneme", sums[0].item<double>() / count},
        {"phoneme_error", sums[1].item<double>() / count}};
  }

 private:
  struct Prediction {
    torch::Tensor logits, targets;  // [13 n, 41] and [13 n] int64
  };

  /// Of each phoneme from the right ones before it (teacher forcing).
  Prediction predict(const Words& words, const torch::Tensor& samples) {
    const auto letters = words.letters.index_select(0, samples).to(torch::kLong);
    const auto targets = words.phonemes.index_select(0, samples).to(torch::kLong);
    const auto preceding = torch::constant_pad_nd(targets.slice(1, 0, -1), {1, 0});
    return {model_(letters, preceding).flatten(0, 1), targets.flatten()};
  }

  static torch::Tensor cross_entropy(const torch::Tensor& logits, const torch::Tensor& targets) {
    return functional::cross_entropy(
        logits, targets, functional::CrossEntropyFuncOptions().ignore_index(0).reduction(torch::kSum));
  }

  Words train_, test_;
  EncoderDecoder model_;
};

}  // namespace

std::unique_ptr<Task> make_lstm(const Arrays& arrays) { return std::make_unique<Lstm>(arrays); }
