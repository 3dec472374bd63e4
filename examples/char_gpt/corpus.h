#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

/// Sequences, and what follows each of their bytes: both [batch, seq], int64.
struct Batch {
  at::Tensor inputs, targets;

  Batch to(at::Device device) const { return {inputs.to(device), targets.to(device)}; }
};

/// A text as bytes: the first nine tenths to train on, the last tenth held out.
class Corpus {
 public:
  enum class Part { training, held_out };

  /// Throws std::runtime_error if the file cannot be read or is too short for sequences of `seq` bytes.
  static Corpus from_file(const std::string& path, int64_t seq);
  /// Random bytes, a megabyte or what `seq` needs.
  static Corpus random(int64_t seq, uint64_t seed);

  Batch draw(Part part, int64_t batch, int64_t seq, std::mt19937_64& generator) const;

 private:
  explicit Corpus(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}

  std::vector<uint8_t> bytes_;
};
