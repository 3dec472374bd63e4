#include "comm/mpi/reduce_tree.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace zerosched::detail {
namespace {

std::string text_of(const ReduceTree& tree, int node) {
  if (tree[node].left < 0) return std::to_string(node);
  return "(" + text_of(tree, tree[node].left) + text_of(tree, tree[node].right) + ")";
}

TEST(ReduceTree, IsBalancedOverTheRankIndex) {
  const std::vector<std::string> wanted = {
      "0", "(01)", "((01)2)", "((01)(23))", "(((01)(23))4)", "(((01)(23))(45))", "(((01)(23))((45)6))"};
  for (size_t i = 0; i < wanted.size(); ++i) {
    const ReduceTree tree(static_cast<int>(i) + 1);
    EXPECT_EQ(text_of(tree, tree.root()), wanted[i]);
    EXPECT_EQ(tree.size(), 2 * static_cast<int>(i) + 1);
    EXPECT_EQ(tree[tree.root()].parent, -1);
  }
}

// Walks leaves in the order in which a rank receives them and counts what waits for a sibling.
TEST(ReduceTree, FewPartialSumsWaitInRotatedOrder) {
  for (int ranks = 1; ranks <= 70; ++ranks) {
    const ReduceTree tree(ranks);
    for (int own = 0; own < ranks; ++own) {
      std::set<int> ready{own};
      for (int distance = 1; distance < ranks; ++distance) {
        int node = (own + distance) % ranks;
        ready.insert(node);
        while (node != tree.root()) {
          const int parent = tree[node].parent;
          if (ready.count(tree[parent].left) == 0 || ready.count(tree[parent].right) == 0) break;
          ready.erase(tree[parent].left);
          ready.erase(tree[parent].right);
          ready.insert(node = parent);
        }
        // The own contribution needs no buffer, so it may wait besides.
        EXPECT_LE(static_cast<int>(ready.size()), tree.max_waiting() + 1) << ranks << " ranks, own " << own;
      }
      EXPECT_EQ(ready, std::set<int>{tree.root()});
    }
  }
}

template <typename T>
void check_narrow(at::ScalarType dtype) {
  std::vector<T> a(37), b(37);
  std::vector<float> partial(37), sum(37);
  for (int i = 0; i < 37; ++i) {
    a[static_cast<size_t>(i)] = static_cast<T>(1.0f + static_cast<float>(i) / 64);
    b[static_cast<size_t>(i)] = static_cast<T>(static_cast<float>(i) / 4096);
  }
  add_range(dtype, {a.data(), false}, {b.data(), false}, partial.data(), false, 37);
  add_range(dtype, {partial.data(), true}, {b.data(), false}, sum.data(), false, 37);
  std::vector<T> rounded(37), mixed(37);
  add_range(dtype, {partial.data(), true}, {sum.data(), true}, rounded.data(), true, 37);
  add_range(dtype, {a.data(), false}, {sum.data(), true}, mixed.data(), true, 37);
  for (size_t i = 0; i < 37; ++i) {
    const float p = static_cast<float>(a[i]) + static_cast<float>(b[i]);
    const float s = p + static_cast<float>(b[i]);
    EXPECT_EQ(partial[i], p);
    EXPECT_EQ(sum[i], s);
    EXPECT_EQ(static_cast<float>(rounded[i]), static_cast<float>(static_cast<T>(p + s)));
    EXPECT_EQ(static_cast<float>(mixed[i]), static_cast<float>(static_cast<T>(static_cast<float>(a[i]) + s)));
  }
  std::vector<float> wide(37);
  widen_range(dtype, a.data(), wide.data(), 37);
  narrow_range(dtype, wide.data(), rounded.data(), 37);
  for (size_t i = 0; i < 37; ++i) EXPECT_EQ(static_cast<float>(rounded[i]), static_cast<float>(a[i]));
}

TEST(AddRange, SumsBFloat16InFloatAndRoundsOnce) { check_narrow<c10::BFloat16>(at::kBFloat16); }
TEST(AddRange, SumsHalfInFloatAndRoundsOnce) { check_narrow<c10::Half>(at::kHalf); }

}  // namespace
}  // namespace zerosched::detail
