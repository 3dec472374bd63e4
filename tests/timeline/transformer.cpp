#include "timeline/transformer.h"

namespace zerosched::testing {
namespace {

ModelPart product(const std::string& name, int64_t in, int64_t out) {
  return {name, in * out, out, 2.0 * static_cast<double>(in) * static_cast<double>(out)};
}

ModelPart norm(const std::string& name, int64_t width) { return {name, width, width, 0}; }

}  // namespace

std::vector<ModelPart> Transformer::parts() const {
  std::vector<ModelPart> parts = {
      {"embedding", vocabulary * width, 0, 0}, {"positions", context * width, 0, 0}};
  for (int64_t layer = 0; layer < layers; ++layer) {
    const std::string block = "blocks." + std::to_string(layer) + ".";
    parts.push_back(norm(block + "norm1", width));
    parts.push_back(product(block + "qkv", width, 3 * width));
    parts.push_back(product(block + "projection", width, width));
    parts.push_back(norm(block + "norm2", width));
    parts.push_back(product(block + "fc1", width, 4 * width));
    parts.push_back(product(block + "fc2", 4 * width, width));
  }
  parts.push_back(norm("norm", width));
  parts.push_back({"head", 0, 0, 2.0 * static_cast<double>(vocabulary) * static_cast<double>(width)});
  return parts;
}

std::vector<Transformer> transformers() {
  return {{"124M", 12, 768, 50304, 1024, 48 * 1024}, {"1.3B", 24, 2048, 50304, 2048, 16 * 2048},
      {"7B", 32, 4096, 50304, 2048, 4 * 2048}};
}

int64_t numel_of(const std::vector<ModelPart>& parts) {
  int64_t numel = 0;
  for (const ModelPart& part : parts) numel += part.weight_numel + part.bias_numel;
  return numel;
}

}  // namespace zerosched::testing
