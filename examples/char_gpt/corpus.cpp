#include "corpus.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace {

// The held-out tenth has room for one sequence and the byte after it.
int64_t bytes_needed(int64_t seq) { return 10 * (seq + 1); }

}  // namespace

Corpus Corpus::from_file(const std::string& path, int64_t seq) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read --data " + path + ": " + std::strerror(errno));
  std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
  if (static_cast<int64_t>(bytes.size()) < bytes_needed(seq)) {
    throw std::runtime_error("--data " + path + " has " + std::to_string(bytes.size()) +
                             " bytes, but --seq " + std::to_string(seq) + " needs at least " +
                             std::to_string(bytes_needed(seq)));
  }
  return Corpus(std::move(bytes));
}

Corpus Corpus::random(int64_t seq, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<uint8_t> bytes(std::max<int64_t>(1 << 20, bytes_needed(seq)));
  for (auto& byte : bytes) byte = static_cast<uint8_t>(generator());
  return Corpus(std::move(bytes));
}

Batch Corpus::draw(Part part, int64_t batch, int64_t seq, std::mt19937_64& generator) const {
  const auto size = static_cast<int64_t>(bytes_.size());
  const int64_t boundary = size - size / 10;
  const int64_t begin = part == Part::training ? 0 : boundary;
  const int64_t end = part == Part::training ? boundary : size;
  std::uniform_int_distribution<int64_t> start_of(begin, end - seq - 1);

  Batch result{at::empty({batch, seq}, at::kLong), at::empty({batch, seq}, at::kLong)};
  auto* inputs = result.inputs.mutable_data_ptr<int64_t>();
  auto* targets = result.targets.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < batch; ++i) {
    const uint8_t* sequence = bytes_.data() + start_of(generator);
    std::copy_n(sequence, seq, inputs + i * seq);
    std::copy_n(sequence + 1, seq, targets + i * seq);
  }
  return result;
}
