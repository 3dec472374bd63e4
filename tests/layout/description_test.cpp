#include "layout/description.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace zerosched::detail {
namespace {

std::vector<ParameterSpec> model() {
  return {{"embedding.weight", {256, 8}, {8, 1}, c10::ScalarType::Float, 0},
      {"head.bias", {256}, {1}, c10::ScalarType::BFloat16, 1}};
}

TEST(Description, NamesEverythingThatRanksMustShare) {
  const auto lines = describe(model());
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0], "parameter 'embedding.weight' [256, 8] Float strides [8, 1] in group 0");
  EXPECT_EQ(lines[1], "parameter 'head.bias' [256] BFloat16 strides [1] in group 1");
}

TEST(Description, HashTellsEveryFieldApart) {
  const int64_t same = hash_of(describe(model()));
  EXPECT_EQ(same, hash_of(describe(model())));
  const auto hash_after = [](auto change) {
    auto parameters = model();
    change(parameters);
    return hash_of(describe(parameters));
  };
  EXPECT_NE(same, hash_after([](auto& m) { m[0].name = "embedding.weigh"; }));
  EXPECT_NE(same, hash_after([](auto& m) { m[0].sizes = {8, 256}; }));
  EXPECT_NE(same, hash_after([](auto& m) { m[0].strides = {1, 256}; }));
  EXPECT_NE(same, hash_after([](auto& m) { m[1].dtype = c10::ScalarType::Half; }));
  EXPECT_NE(same, hash_after([](auto& m) { m[1].group = 0; }));
  EXPECT_NE(same, hash_after([](auto& m) { std::swap(m[0], m[1]); }));
  EXPECT_NE(same, hash_after([](auto& m) { m.pop_back(); }));
}

TEST(Description, HashKeepsLinesApart) {
  EXPECT_NE(hash_of({"ab", "c"}), hash_of({"a", "bc"}));
  EXPECT_NE(hash_of({}), hash_of({""}));
}

TEST(Description, FirstDifferenceQuotesBothSides) {
  auto mine = model();
  mine[1].sizes = {255};
  const std::string message = first_difference(describe(mine), describe(model()), 3);
  EXPECT_NE(message.find("rank 0 has parameter 'head.bias' [256]"), std::string::npos) << message;
  EXPECT_NE(message.find("rank 3 has parameter 'head.bias' [255]"), std::string::npos) << message;
  EXPECT_EQ(message.find("embedding"), std::string::npos) << message;
}

TEST(Description, FirstDifferenceOfListsOfUnlikeLength) {
  auto shorter = model();
  shorter.pop_back();
  const std::string less = first_difference(describe(shorter), describe(model()), 1);
  EXPECT_NE(less.find("rank 0 has parameter 'head.bias'"), std::string::npos) << less;
  EXPECT_NE(less.find("rank 1 has nothing more"), std::string::npos) << less;
  const std::string more = first_difference(describe(model()), describe(shorter), 1);
  EXPECT_NE(more.find("rank 0 has nothing more"), std::string::npos) << more;
}

TEST(Description, EqualListsHaveNoDifference) {
  EXPECT_EQ(first_difference(describe(model()), describe(model()), 1), "");
}

}  // namespace
}  // namespace zerosched::detail
