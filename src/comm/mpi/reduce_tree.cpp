#include "comm/mpi/reduce_tree.h"

#include "base/check.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace zerosched::detail {

namespace {

template <typename A, typename B, typename Out, typename Sum>
void add_loop(const void* a_data, const void* b_data, void* out_data, int64_t count) {
  const auto* a = static_cast<const A*>(a_data);
  const auto* b = static_cast<const B*>(b_data);
  auto* out = static_cast<Out*>(out_data);
  for (int64_t i = 0; i < count; ++i)
    out[i] = static_cast<Out>(static_cast<Sum>(a[i]) + static_cast<Sum>(b[i]));
}

template <typename T>
void add_narrow(Addend a, Addend b, void* out, bool last, int64_t count) {
  // Addition commutes exactly, so a mixed pair needs one order only.
  if (a.partial && !b.partial) std::swap(a, b);
  if (!b.partial) {
    last ? add_loop<T, T, T, float>(a.data, b.data, out, count)
         : add_loop<T, T, float, float>(a.data, b.data, out, count);
  } else if (!a.partial) {
    last ? add_loop<T, float, T, float>(a.data, b.data, out, count)
         : add_loop<T, float, float, float>(a.data, b.data, out, count);
  } else {
    last ? add_loop<float, float, T, float>(a.data, b.data, out, count)
         : add_loop<float, float, float, float>(a.data, b.data, out, count);
  }
}

template <typename In, typename Out>
void convert_loop(const void* in_data, void* out_data, int64_t count) {
  const auto* in = static_cast<const In*>(in_data);
  auto* out = static_cast<Out*>(out_data);
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Out>(in[i]);
}

}  // namespace

ReduceTree::ReduceTree(int ranks) {
  nodes_.resize(static_cast<size_t>(ranks));
  root_ = build(0, ranks);
  // At most one complete subtree per level waits on either side of the gap that rotation leaves.
  for (int span = 1; span < ranks; span *= 2) max_waiting_ += 2;
}

int ReduceTree::build(int lo, int hi) {
  if (hi - lo == 1) return lo;
  int half = 1;
  while (half * 2 < hi - lo) half *= 2;
  const int left = build(lo, lo + half);
  const int right = build(lo + half, hi);
  const int node = static_cast<int>(nodes_.size());
  nodes_.push_back(Node{-1, left, right});
  nodes_[static_cast<size_t>(left)].parent = node;
  nodes_[static_cast<size_t>(right)].parent = node;
  return node;
}

int64_t partial_bytes(at::ScalarType dtype) { return dtype == at::kDouble ? 8 : 4; }

void add_range(at::ScalarType dtype, Addend a, Addend b, void* out, bool last, int64_t count) {
  switch (dtype) {
    case at::kFloat:
      return add_loop<float, float, float, float>(a.data, b.data, out, count);
    case at::kDouble:
      return add_loop<double, double, double, double>(a.data, b.data, out, count);
    case at::kBFloat16:
      return add_narrow<c10::BFloat16>(a, b, out, last, count);
    case at::kHalf:
      return add_narrow<c10::Half>(a, b, out, last, count);
    default:
      ZEROSCHED_CHECK(false, "mpi: no sums of ", dtype);
  }
}

void widen_range(at::ScalarType dtype, const void* in, float* out, int64_t count) {
  dtype == at::kHalf ? convert_loop<c10::Half, float>(in, out, count)
                     : convert_loop<c10::BFloat16, float>(in, out, count);
}

void narrow_range(at::ScalarType dtype, const float* in, void* out, int64_t count) {
  dtype == at::kHalf ? convert_loop<float, c10::Half>(in, out, count)
                     : convert_loop<float, c10::BFloat16>(in, out, count);
}

}  // namespace zerosched::detail
