// What manifests say of a checkpoint as a whole, and the numbers that none may have.
#include "io/checkpoint_summary.h"
#include "io/small_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

namespace zerosched::detail {
namespace {

using testing::small_manifest;

void expect_error(const std::function<void()>& function, const std::vector<std::string>& parts) {
  std::string message = "no error";
  try {
    function();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
}

CheckpointSummary of_several() {
  CheckpointSummary summary;
  summary.library_version = "1.2.3";
  summary.created = 7;
  summary.finite = false;
  summary.series = {"aa", "bb"};
  summary.job = JobIdentity::own();
  summary.optimizers = {"AdamW", "SGD"};
  summary.is_of_several = true;
  return summary;
}

TEST(Summary, OfOne) {
  Manifest manifest = small_manifest(5);
  manifest.series = "aa";
  manifest.job = JobIdentity::own();
  const CheckpointSummary summary = parse_summary(to_json(manifest));
  EXPECT_EQ(summary.parts(), 0U);
  EXPECT_EQ(summary.created, 5);
  EXPECT_TRUE(summary.finite);
  EXPECT_EQ(summary.series, std::vector<std::string>{"aa"});
  EXPECT_TRUE(*summary.job == JobIdentity::own());
  EXPECT_EQ(summary.parameters, std::vector<std::string>{"w"});
  EXPECT_EQ(to_json(parse_manifest(to_json(manifest))), to_json(manifest));
}

TEST(Summary, OfSeveral) {
  const std::string text = to_json(of_several());
  const CheckpointSummary read = parse_summary(text);
  EXPECT_EQ(to_json(read), text);
  EXPECT_EQ(read.parts(), 2U);
  EXPECT_TRUE(is_of_several(text));
  EXPECT_FALSE(is_of_several(to_json(small_manifest())));
  // Those that know of one optimizer only must not take it for one of theirs.
  expect_error([&] { parse_manifest(text); }, {"its format is another"});
  for (size_t length = 0; length + 2 < text.size(); ++length) {
    expect_error([&] { parse_summary(text.substr(0, length)); }, {"not"});
  }
  CheckpointSummary uneven = of_several();
  uneven.series.pop_back();
  expect_error([&] { parse_summary(to_json(uneven)); }, {"one entry per optimizer"});
}

TEST(Summary, OfOneTraining) {
  const CheckpointSummary several = of_several();
  EXPECT_TRUE(are_of_one_training(several, several));
  CheckpointSummary other = several;
  other.series[1] = "cc";
  EXPECT_FALSE(are_of_one_training(several, other));
  // Older versions have no series: then by class and names.
  CheckpointSummary old = parse_summary(to_json(small_manifest()));
  CheckpointSummary now = old;
  now.series = {"aa"};
  EXPECT_TRUE(are_of_one_training(old, now));
  now.parameters = {"v"};
  EXPECT_FALSE(are_of_one_training(old, now));
}

TEST(Numbers, OfGroups) {
  check_numbers(small_manifest());
  const auto refused = [](const std::function<void(GroupState&)>& change, const char* name) {
    Manifest manifest = small_manifest();
    change(manifest.groups[0].state);
    expect_error([&] { check_numbers(manifest); }, {name, "group 0", "expected"});
  };
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for (const double bad : {kNan, kInf, -0.5}) {
    refused([&](GroupState& state) { state.weight_sum = bad; }, "weight_sum");
    refused([&](GroupState& state) { state.lr_max = bad; }, "lr_max");
    refused([&](GroupState& state) { state.y_weight = bad; }, "y_weight");
  }
  refused([](GroupState& state) { state.y_weight = 1.5; }, "y_weight");
  Manifest manifest = small_manifest();
  manifest.groups[0].state.k = std::numeric_limits<int64_t>::max();
  expect_error([&] { parse_manifest(to_json(manifest)); }, {"'k'", "range"});
  manifest.groups[0].state.k = int64_t{1} << 53;
  EXPECT_EQ(parse_manifest(to_json(manifest)).groups[0].state.k, int64_t{1} << 53);
}

TEST(Numbers, OfParameters) {
  Manifest manifest = small_manifest();
  manifest.parameters[0].sizes = {int64_t{1} << 40, int64_t{1} << 40};
  expect_error([&] { check_numbers(manifest); }, {"'w'", "more elements"});
}

}  // namespace
}  // namespace zerosched::detail
