#include "engine/shard_state.h"

#include "kernels/kernels.h"

#include <map>

namespace zerosched::detail {

std::vector<int64_t> state_begins(const Layout& layout) {
  std::map<c10::ScalarType, int64_t> ends;
  std::vector<int64_t> begins;
  for (const Bucket& bucket : layout.buckets) {
    int64_t& end = ends[kernels::state_dtype(bucket.dtype)];
    begins.push_back(end);
    end += bucket.shard_numel;
  }
  return begins;
}

std::vector<ShardState> make_state(const Layout& layout, size_t tensors, Executor& executor) {
  std::map<c10::ScalarType, int64_t> numels;
  for (const Bucket& bucket : layout.buckets)
    numels[kernels::state_dtype(bucket.dtype)] += bucket.shard_numel;
  std::map<c10::ScalarType, ShardState> whole;
  for (const auto& [dtype, numel] : numels) {
    for (size_t i = 0; i < tensors; ++i) {
      whole[dtype][i] = executor.empty(numel, dtype);
      executor.fill(whole[dtype][i], 0);
    }
  }
  const std::vector<int64_t> begins = state_begins(layout);
  std::vector<ShardState> state(layout.buckets.size());
  for (size_t b = 0; b < state.size(); ++b) {
    const Bucket& bucket = layout.buckets[b];
    for (size_t i = 0; i < tensors; ++i) {
      state[b][i] = whole[kernels::state_dtype(bucket.dtype)][i].narrow(0, begins[b], bucket.shard_numel);
    }
  }
  return state;
}

}  // namespace zerosched::detail
