#include "comm/mpi/shared_stages.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace zerosched::detail {

namespace {

using Sign = LocalRanks::Sign;

// A chunk and a partial sum of it stay in the first cache, or the second where it is small.
constexpr int64_t kChunkNumel = 4096;
// What one poll does, so that whoever waits for the lock, or for a message, does not wait long: a tenth of a millisecond.
constexpr int64_t kNumelPerPoll = int64_t{256} << 10;
constexpr int64_t kBytesPerPoll = int64_t{1} << 20;

}  // namespace

SharedReduce::SharedReduce(std::shared_ptr<LocalRanks> ranks, int64_t sequence, int64_t stride,
    at::ScalarType dtype, int64_t slice_numel, std::vector<const char*> slices, std::vector<char*> sums,
    bool last)
    : ranks_(std::move(ranks)),
      sequence_(sequence),
      stride_(stride),
      dtype_(dtype),
      slice_numel_(slice_numel),
      slices_(std::move(slices)),
      sums_(std::move(sums)),
      last_(last),
      tree_(ranks_->count()),
      chunks_per_slice_((slice_numel + kChunkNumel - 1) / kChunkNumel),
      total_(chunks_per_slice_ * static_cast<int64_t>(slices_.size())) {}

bool SharedReduce::poll() {
  if (!std::exchange(has_signed_, true)) ranks_->sign(Sign::may_be_read, sequence_);
  if (done() || !ranks_->all_have_signed(Sign::may_be_read, sequence_)) return false;
  // Of two ranks as many are read as two copies would take.
  const int64_t chunks = std::max<int64_t>(1, 2 * kNumelPerPoll / kChunkNumel / ranks_->count());
  const int64_t end = std::min(total_, next_ + chunks);
  for (; next_ < end; ++next_) sum_chunk(next_);
  return true;
}

void SharedReduce::sum_chunk(int64_t index) {
  const auto slice = static_cast<size_t>(index / chunks_per_slice_);
  const int64_t first = index % chunks_per_slice_ * kChunkNumel;
  const auto bytes = static_cast<int64_t>(c10::elementSize(dtype_));
  sum(tree_.root(), slices_[slice] + first * bytes, std::min(kChunkNumel, slice_numel_ - first),
      sums_[slice] + first * (last_ ? bytes : partial_bytes(dtype_)), 0);
}

// Into `out`, or where a leaf is. Scratch of a depth is free again once its sum has become part of one above.
Addend SharedReduce::sum(int node, const char* own, int64_t numel, char* out, int depth) {
  const auto& branch = tree_[node];
  if (branch.left < 0) return {own + (node - ranks_->position()) * stride_, false};
  const auto scratch = [&](int index) {
    while (static_cast<int>(scratch_.size()) <= index) {
      scratch_.push_back(
          std::unique_ptr<char[]>(new char[static_cast<size_t>(kChunkNumel * sizeof(double))]));
    }
    return scratch_[static_cast<size_t>(index)].get();
  };
  const Addend a = sum(branch.left, own, numel, scratch(2 * depth), depth + 1);
  const Addend b = sum(branch.right, own, numel, scratch(2 * depth + 1), depth + 1);
  const bool rounds = node == tree_.root() && last_;
  add_range(dtype_, a, b, out, rounds, numel);
  return {out, !rounds};
}

SharedGather::SharedGather(std::shared_ptr<LocalRanks> ranks, int64_t sequence, int64_t stride,
    int64_t slice_bytes, std::vector<Source> sources)
    : ranks_(std::move(ranks)),
      sequence_(sequence),
      stride_(stride),
      slice_bytes_(slice_bytes),
      sources_(std::move(sources)) {}

bool SharedEnd::poll() {
  if (!std::exchange(has_signed_, true)) ranks_->sign(Sign::has_read, sequence_);
  done_ = ranks_->all_have_signed(Sign::has_read, sequence_);
  return done_;
}

bool SharedGather::poll() {
  if (!std::exchange(has_signed_, true)) ranks_->sign(Sign::may_be_read, sequence_);
  int64_t left = kBytesPerPoll;
  while (!sources_.empty() && left > 0) {
    // Whoever is through first is read first.
    if (copied_ == 0) {
      const auto ready = std::find_if(sources_.begin(), sources_.end(), [this](const Source& source) {
        return ranks_->has_signed(source.position, Sign::may_be_read, sequence_);
      });
      if (ready == sources_.end()) break;
      std::iter_swap(sources_.begin(), ready);
    }
    Source& source = sources_.front();
    char* to = source.slices.back() + copied_;
    const int64_t count = std::min(left, slice_bytes_ - copied_);
    std::memcpy(to, to + (source.position - ranks_->position()) * stride_, static_cast<size_t>(count));
    left -= count;
    copied_ += count;
    if (copied_ < slice_bytes_) break;
    copied_ = 0;
    source.slices.pop_back();
    if (source.slices.empty()) sources_.erase(sources_.begin());
  }
  return left < kBytesPerPoll;
}

}  // namespace zerosched::detail
