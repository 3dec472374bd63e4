#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zerosched::testing {

/// A module of a model, as far as time and memory ask: what it has to train, and what it computes.
struct ModelPart {
  std::string name;
  int64_t weight_numel = 0;
  int64_t bias_numel = 0;  ///< 0: none
  /// Of the forward of one token; backward takes twice as many.
  double flops_per_token = 0;
};

/// A GPT: what of its size a training step is about.
struct Transformer {
  std::string name;
  int64_t layers, width, vocabulary, context;
  int64_t tokens;  ///< of a step, on each GPU

  /// In the order of forward: an embedding, positions, blocks of two norms and four products, a norm, and the head,
  /// which has the embedding's weights and so none of its own. Two flops per weight and token; attention's own products
  /// are left out.
  std::vector<ModelPart> parts() const;
};

/// GPT-2 (124M parameters), GPT-3 XL (1.3B) and 6.7B, with the tokens that fill a GPU for about 0.1, 0.7 and 0.9 s. Their
/// vocabulary is filled up to a multiple of 64.
std::vector<Transformer> transformers();

int64_t numel_of(const std::vector<ModelPart>& parts);

}  // namespace zerosched::testing
