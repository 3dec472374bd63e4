#pragma once

#include <torch/nn.h>

#include <cstdint>
#include <functional>

// at::linear is one fused kernel for sequences too; torch::nn::Linear::forward adds the bias in a pass of
// its own.
inline torch::Tensor apply_linear(const torch::nn::Linear& layer, const torch::Tensor& input) {
  return torch::linear(input, layer->weight, layer->bias);
}

class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(int64_t dim, int64_t heads, double dropout)
      : heads_(heads),
        dropout_(dropout),
        ln1(register_module("ln1", torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})))),
        ln2(register_module("ln2", torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})))),
        qkv(register_module("qkv", torch::nn::Linear(dim, 3 * dim))),
        proj(register_module("proj", torch::nn::Linear(dim, dim))),
        fc1(register_module("fc1", torch::nn::Linear(dim, 4 * dim))),
        fc2(register_module("fc2", torch::nn::Linear(4 * dim, dim))) {}

  torch::Tensor forward(torch::Tensor x) {  // [batch, seq, dim]
    x = x + dropped(apply_linear(proj, attention(apply_linear(qkv, ln1(x)))));
    return x + dropped(apply_linear(fc2, torch::gelu(apply_linear(fc1, ln2(x)))));
  }

 private:
  torch::Tensor dropped(const torch::Tensor& x) {
    return dropout_ > 0 ? torch::dropout(x, dropout_, is_training()) : x;
  }

  torch::Tensor attention(const torch::Tensor& qkv_rows) {  // [batch, seq, 3 * dim]
    const int64_t batch = qkv_rows.size(0), seq = qkv_rows.size(1), dim = qkv_rows.size(2) / 3;
    const auto qkv_heads =
        qkv_rows.view({batch, seq, 3, heads_, dim / heads_}).permute({2, 0, 3, 1, 4}).unbind(0);
    return at::scaled_dot_product_attention(qkv_heads[0], qkv_heads[1], qkv_heads[2], /*attn_mask=*/{},
        /*dropout_p=*/is_training() ? dropout_ : 0.0,
        /*is_causal=*/true)
        .transpose(1, 2)
        .reshape({batch, seq, dim});
  }

  int64_t heads_;
  double dropout_;
  torch::nn::LayerNorm ln1, ln2;
  torch::nn::Linear qkv, proj, fc1, fc2;
};
TORCH_MODULE(Block);

/// Decoder-only transformer: pre-LayerNorm blocks, GELU, learned positions, untied head.
class GptImpl : public torch::nn::Module {
 public:
  static constexpr int64_t kVocabulary = 256;  // bytes

  GptImpl(int64_t dim, int64_t layers, int64_t heads, int64_t max_seq, double dropout = 0)
      : tok(register_module("tok", torch::nn::Embedding(kVocabulary, dim))),
        pos(register_module("pos", torch::nn::Embedding(max_seq, dim))),
        blocks(register_module("blocks", torch::nn::ModuleList())),
        ln(register_module("ln", torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})))),
        head(register_module(
            "head", torch::nn::Linear(torch::nn::LinearOptions(dim, kVocabulary).bias(false)))) {
    for (int64_t i = 0; i < layers; ++i) blocks->push_back(Block(dim, heads, dropout));
  }

  /// Called with each part right before forward uses its parameters, which may be on their way until then:
  /// ShardedOptimizer::ready() goes here.
  std::function<void(const torch::nn::Module&)> before_use = [](const torch::nn::Module&) {};

  /// [batch, seq] bytes as int64 -> [batch, seq, 256] logits.
  torch::Tensor forward(const torch::Tensor& bytes) {
    before_use(*tok);
    before_use(*pos);
    auto x = tok(bytes) + pos(torch::arange(bytes.size(1), bytes.options()));
    for (const auto& block : *blocks) {
      before_use(*block);
      x = block->as<Block>()->forward(x);
    }
    before_use(*ln);
    before_use(*head);
    return apply_linear(head, ln(x));
  }

 private:
  torch::nn::Embedding tok, pos;
  torch::nn::ModuleList blocks;
  torch::nn::LayerNorm ln;
  torch::nn::Linear head;
};
TORCH_MODULE(Gpt);
