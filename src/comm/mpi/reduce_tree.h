#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace zerosched::detail {

/// The order in which contributions of `ranks` ranks are summed: a balanced binary tree over the rank index,
/// sum(lo, hi) = sum(lo, mid) + sum(mid, hi) with mid = lo + the largest power of two below hi - lo. It
/// depends on the number of ranks alone, not on what arrives first, and 2^k equal contributions g give
/// exactly 2^k * g. Leaves are nodes 0 to ranks - 1.
class ReduceTree {
 public:
  explicit ReduceTree(int ranks);

  struct Node {
    int parent = -1;
    int left = -1;
    int right = -1;
  };
  const Node& operator[](int node) const { return nodes_[static_cast<size_t>(node)]; }
  int root() const { return root_; }
  int size() const { return static_cast<int>(nodes_.size()); }
  /// The most partial sums that wait for a sibling when leaves arrive in (rotated) rank order.
  int max_waiting() const { return max_waiting_; }

 private:
  int build(int lo, int hi);
  std::vector<Node> nodes_;
  int root_ = 0;
  int max_waiting_ = 0;
};

/// Bytes of one element of a partial sum: 4 for 16-bit types, which are summed in float32.
int64_t partial_bytes(at::ScalarType dtype);

/// One input of a sum: a contribution as sent, in the tensor's dtype, or a partial sum.
struct Addend {
  const void* data;
  bool partial;
};

/// out[i] = a[i] + b[i]. The last sum of a tree is rounded to the tensor's dtype (`last`), the others are
/// partial sums. `out` may be the memory of an addend that is as wide as it.
void add_range(at::ScalarType dtype, Addend a, Addend b, void* out, bool last, int64_t count);

/// 16-bit to float32 and back, rounding to nearest even.
void widen_range(at::ScalarType dtype, const void* in, float* out, int64_t count);
void narrow_range(at::ScalarType dtype, const float* in, void* out, int64_t count);

}  // namespace zerosched::detail
