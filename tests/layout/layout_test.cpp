#include "layout/layout.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace zerosched::detail {
namespace {

constexpr int64_t kAlignmentBytes = 128;

ParameterSpec spec(const std::string& name, std::vector<int64_t> sizes,
    c10::ScalarType dtype = c10::ScalarType::Float, int64_t group = 0) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 2; d >= 0; --d) {
    const auto i = static_cast<size_t>(d);
    strides[i] = strides[i + 1] * std::max<int64_t>(sizes[i + 1], 1);
  }
  return {name, std::move(sizes), std::move(strides), dtype, group};
}

LayoutOptions buckets_of(int64_t bytes, int64_t first_bytes) { return {bytes, first_bytes}; }
LayoutOptions buckets_of(int64_t bytes) { return buckets_of(bytes, bytes); }

// Everything that make_layout() promises of any input, whatever its buckets look like.
void check_promises(const std::vector<ParameterSpec>& parameters, const Layout& layout, int64_t world_size) {
  ASSERT_EQ(layout.world_size, world_size);
  ASSERT_EQ(layout.place_of.size(), parameters.size());
  std::vector<int> seen(parameters.size(), 0);
  int64_t shard_numel = 0;
  for (size_t b = 0; b < layout.buckets.size(); ++b) {
    const Bucket& bucket = layout.buckets[b];
    const auto element_bytes = static_cast<int64_t>(c10::elementSize(bucket.dtype));
    const auto reduce_bytes = static_cast<int64_t>(c10::elementSize(bucket.reduce_dtype));
    shard_numel += bucket.shard_numel;
    EXPECT_EQ(bucket.shard_numel * element_bytes % kAlignmentBytes, 0);
    EXPECT_EQ(bucket.gradient_slice_numel() * reduce_bytes % kAlignmentBytes, 0);
    EXPECT_EQ(bucket.numel(world_size), bucket.shard_numel * world_size);
    ASSERT_FALSE(bucket.slots.empty());

    int64_t end = 0;
    int64_t last_parameter = static_cast<int64_t>(parameters.size());
    for (size_t s = 0; s < bucket.slots.size(); ++s) {
      const Slot& slot = bucket.slots[s];
      const ParameterSpec& parameter = parameters[static_cast<size_t>(slot.parameter)];
      EXPECT_LT(slot.parameter, last_parameter) << "reverse registration order";
      last_parameter = slot.parameter;
      ++seen[static_cast<size_t>(slot.parameter)];
      EXPECT_EQ(slot.numel, parameter.numel());
      EXPECT_EQ(bucket.dtype, parameter.dtype);
      EXPECT_EQ(bucket.group, parameter.group);
      EXPECT_EQ(slot.offset * element_bytes % kAlignmentBytes, 0) << parameter.name;
      EXPECT_GE(slot.offset, end);
      EXPECT_LT((slot.offset - end) * std::min(element_bytes, reduce_bytes), kAlignmentBytes)
          << "needless gap";
      end = slot.offset + slot.numel;
      const Layout::Place place = layout.place_of[static_cast<size_t>(slot.parameter)];
      EXPECT_EQ(place.bucket, static_cast<int64_t>(b));
      EXPECT_EQ(place.slot, static_cast<int64_t>(s));
    }
    EXPECT_GE(bucket.numel(world_size), end);
    EXPECT_LT((bucket.numel(world_size) - end) * std::min(element_bytes, reduce_bytes),
        kAlignmentBytes * world_size)
        << "needless padding";

    // Pieces tile every slot, in order, inside the slices, and flags number the pieces of a slice.
    std::vector<int64_t> done(bucket.slots.size(), 0);
    std::vector<int64_t> flags(static_cast<size_t>(world_size), 0);
    int64_t last_slot = 0;
    for (const Piece& piece : bucket.pieces) {
      EXPECT_GE(piece.slot, last_slot);
      last_slot = piece.slot;
      const Slot& slot = bucket.slots[static_cast<size_t>(piece.slot)];
      EXPECT_GT(piece.numel, 0);
      EXPECT_EQ(piece.slot_begin, done[static_cast<size_t>(piece.slot)]);
      done[static_cast<size_t>(piece.slot)] += piece.numel;
      EXPECT_EQ(piece.slice * bucket.shard_numel + piece.slice_begin, slot.offset + piece.slot_begin);
      ASSERT_LT(piece.slice, world_size);
      EXPECT_LE(piece.slice_begin + piece.numel, bucket.shard_numel);
      EXPECT_EQ(piece.flag, flags[static_cast<size_t>(piece.slice)]++);
      EXPECT_LT(piece.flag, bucket.flag_numel);
    }
    for (size_t s = 0; s < bucket.slots.size(); ++s) EXPECT_EQ(done[s], bucket.slots[s].numel);
  }
  for (size_t p = 0; p < parameters.size(); ++p) {
    const bool has_elements = parameters[p].numel() > 0;
    EXPECT_EQ(seen[p], has_elements ? 1 : 0) << parameters[p].name;
    EXPECT_EQ(layout.place_of[p].bucket >= 0, has_elements);
  }
  EXPECT_EQ(layout.shard_numel(), shard_numel);
}

TEST(Layout, RandomModelsKeepTheirPromises) {
  std::mt19937 random(7);
  const c10::ScalarType dtypes[] = {
      c10::ScalarType::Float, c10::ScalarType::BFloat16, c10::ScalarType::Double};
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<ParameterSpec> parameters;
    const auto count = std::uniform_int_distribution<int>(1, 40)(random);
    for (int p = 0; p < count; ++p) {
      std::vector<int64_t> sizes(std::uniform_int_distribution<size_t>(0, 3)(random));
      for (int64_t& size : sizes) size = std::uniform_int_distribution<int64_t>(0, 19)(random);
      parameters.push_back(
          spec("p" + std::to_string(p), sizes, dtypes[random() % 3], static_cast<int64_t>(random() % 3)));
    }
    LayoutOptions options = buckets_of(std::uniform_int_distribution<int64_t>(1, 20000)(random),
        std::uniform_int_distribution<int64_t>(1, 5000)(random));
    const auto world_size = std::uniform_int_distribution<int64_t>(1, 9)(random);
    check_promises(parameters, make_layout(parameters, options, world_size), world_size);
  }
}

TEST(Layout, ClosesABucketBeforeItWouldPassItsBytes) {
  // 32 floats are 128 bytes, so there are no gaps to count.
  const std::vector<ParameterSpec> parameters(7, spec("p", {32}));
  const Layout layout = make_layout(parameters, buckets_of(3 * 128), 2);
  ASSERT_EQ(layout.buckets.size(), 3U);
  EXPECT_EQ(layout.buckets[0].slots.size(), 3U);
  EXPECT_EQ(layout.buckets[1].slots.size(), 3U);
  EXPECT_EQ(layout.buckets[2].slots.size(), 1U);
  EXPECT_EQ(layout.buckets[0].slots[0].parameter, 6) << "the last registered comes first";
}

TEST(Layout, TheFirstBucketOfASequenceHasALimitOfItsOwn) {
  std::vector<ParameterSpec> parameters;
  for (int p = 0; p < 12; ++p) {
    parameters.push_back(spec("p" + std::to_string(p), {32}, c10::ScalarType::Float, p < 6 ? 0 : 1));
  }
  const Layout layout = make_layout(parameters, buckets_of(4 * 128, 128), 2);
  std::vector<size_t> slots;
  for (const Bucket& bucket : layout.buckets) slots.push_back(bucket.slots.size());
  EXPECT_EQ(slots, (std::vector<size_t>{1, 4, 1, 1, 4, 1}));
  check_promises(parameters, layout, 2);
}

TEST(Layout, AParameterLargerThanABucketIsABucketOfItsOwn) {
  const std::vector<ParameterSpec> parameters = {
      spec("before", {8}), spec("large", {1000}), spec("after", {8}), spec("last", {8})};
  const Layout layout = make_layout(parameters, buckets_of(512), 3);
  ASSERT_EQ(layout.buckets.size(), 3U);
  EXPECT_EQ(layout.buckets[0].slots.size(), 2U);
  ASSERT_EQ(layout.buckets[1].slots.size(), 1U);
  EXPECT_EQ(layout.buckets[1].slots[0].parameter, 1);
  EXPECT_EQ(layout.buckets[1].pieces.size(), 3U) << "cut over all three ranks";
  EXPECT_EQ(layout.buckets[2].slots[0].parameter, 0);
}

TEST(Layout, MoreRanksThanElements) {
  const std::vector<ParameterSpec> parameters = {spec("scalar", {}), spec("pair", {2})};
  const Layout layout = make_layout(parameters, buckets_of(1 << 20), 64);
  check_promises(parameters, layout, 64);
  ASSERT_EQ(layout.buckets.size(), 1U);
  EXPECT_EQ(layout.buckets[0].shard_numel, 32);
  EXPECT_EQ(layout.buckets[0].pieces.size(), 2U);
}

TEST(Layout, ZeroDimensionalIsOneElementAndEmptyIsNone) {
  EXPECT_EQ(spec("scalar", {}).numel(), 1);
  EXPECT_EQ(spec("empty", {3, 0}).numel(), 0);
  const std::vector<ParameterSpec> parameters = {
      spec("empty", {3, 0}), spec("scalar", {}), spec("none", {0})};
  const Layout layout = make_layout(parameters, buckets_of(100), 2);
  check_promises(parameters, layout, 2);
  ASSERT_EQ(layout.buckets.size(), 1U);
  EXPECT_EQ(layout.place_of[0].bucket, -1);
  EXPECT_EQ(layout.place_of[1].bucket, 0);
}

TEST(Layout, OnlyEmptyParametersMakeNoBucket) {
  EXPECT_TRUE(make_layout({spec("empty", {0})}, buckets_of(100), 2).buckets.empty());
}

TEST(Layout, CountsBeyondTheRangeOfInt32) {
  // 3 * 2^32 elements: 48 GiB of float32, as integers.
  const std::vector<ParameterSpec> parameters = {
      spec("small", {5}), spec("huge", {3, int64_t{1} << 32}), spec("tail", {7})};
  for (const int64_t world_size : {1, 3, 7}) {
    const Layout layout = make_layout(parameters, buckets_of(int64_t{1} << 62), world_size);
    check_promises(parameters, layout, world_size);
    ASSERT_EQ(layout.buckets.size(), 1U);
    EXPECT_GT(layout.buckets[0].numel(world_size), int64_t{3} << 32);
    EXPECT_EQ(layout.buckets[0].slots[1].numel, int64_t{3} << 32);
  }
}

TEST(Layout, GroupsAndDtypesDoNotShareBuckets) {
  const std::vector<ParameterSpec> parameters = {spec("a", {4}), spec("b", {4}, c10::ScalarType::BFloat16),
      spec("c", {4}, c10::ScalarType::Float, 1), spec("d", {4}), spec("e", {4}, c10::ScalarType::BFloat16)};
  const Layout layout = make_layout(parameters, buckets_of(1 << 20), 2);
  check_promises(parameters, layout, 2);
  EXPECT_EQ(layout.buckets.size(), 3U);
  EXPECT_EQ(layout.place_of[0].bucket, layout.place_of[3].bucket);
  EXPECT_EQ(layout.place_of[1].bucket, layout.place_of[4].bucket);
}

TEST(Layout, ReduceDtype) {
  const auto reduced_in = [](c10::ScalarType dtype, c10::ScalarType requested) {
    LayoutOptions options = buckets_of(1024);
    options.reduce_dtype = requested;
    return make_layout({spec("weight", {10}, dtype)}, options, 2).buckets.at(0).reduce_dtype;
  };
  using c10::ScalarType;
  EXPECT_EQ(reduced_in(ScalarType::Float, ScalarType::Undefined), ScalarType::Float);
  EXPECT_EQ(reduced_in(ScalarType::Double, ScalarType::Undefined), ScalarType::Double);
  EXPECT_EQ(reduced_in(ScalarType::BFloat16, ScalarType::Undefined), ScalarType::BFloat16);
  EXPECT_EQ(reduced_in(ScalarType::Half, ScalarType::Undefined), ScalarType::Float);
  EXPECT_EQ(reduced_in(ScalarType::BFloat16, ScalarType::Float), ScalarType::Float);
  EXPECT_EQ(reduced_in(ScalarType::Double, ScalarType::Double), ScalarType::Double);
  try {
    reduced_in(ScalarType::Double, ScalarType::Float);
    FAIL() << "a float64 gradient was to be reduced in float32";
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_NE(message.find("reduce_dtype is Float"), std::string::npos) << message;
    EXPECT_NE(message.find("'weight' is Double"), std::string::npos) << message;
  }
  EXPECT_EQ(reduced_in(ScalarType::Float, ScalarType::BFloat16), ScalarType::BFloat16);
  EXPECT_THROW(reduced_in(ScalarType::Float, ScalarType::Half), c10::Error);  // whose range is too small
}

TEST(Layout, BucketsGrowWithTheRanks) {
  constexpr int64_t kMebibyte = int64_t{1} << 20;
  EXPECT_EQ(default_bucket_bytes(Wire::host, 1000), 25 * kMebibyte);
  EXPECT_EQ(default_bucket_bytes(Wire::network, 2), 8 * kMebibyte);
  EXPECT_EQ(default_bucket_bytes(Wire::network, 256), 16 * kMebibyte);
  EXPECT_EQ(default_bucket_bytes(Wire::network, 1024), 25 * kMebibyte);
  EXPECT_EQ(default_bucket_bytes(Wire::nccl, 8), 100 * kMebibyte);
  EXPECT_EQ(default_bucket_bytes(Wire::nccl, 64), 256 * kMebibyte);
  EXPECT_EQ(default_bucket_bytes(Wire::nccl, 1024), 400 * kMebibyte);
}

TEST(Layout, OptionsMustBePositive) {
  const std::vector<ParameterSpec> parameters = {spec("p", {4})};
  for (const auto& [options, name] : {std::pair(buckets_of(0, 1), "bucket_bytes"),
           std::pair(buckets_of(1, 0), "first_bucket_bytes"), std::pair(buckets_of(-5, 1), "bucket_bytes")}) {
    try {
      make_layout(parameters, options, 2);
      FAIL() << name << " was accepted";
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
  }
}

TEST(Layout, IsAPureFunction) {
  const std::vector<ParameterSpec> parameters = {
      spec("a", {40, 7}), spec("b", {13}), spec("c", {}, c10::ScalarType::Double), spec("d", {999})};
  const Layout a = make_layout(parameters, buckets_of(700), 3);
  const Layout b = make_layout(parameters, buckets_of(700), 3);
  ASSERT_EQ(a.buckets.size(), b.buckets.size());
  for (size_t i = 0; i < a.buckets.size(); ++i) {
    EXPECT_EQ(a.buckets[i].shard_numel, b.buckets[i].shard_numel);
    EXPECT_EQ(a.buckets[i].flag_numel, b.buckets[i].flag_numel);
    ASSERT_EQ(a.buckets[i].slots.size(), b.buckets[i].slots.size());
    for (size_t s = 0; s < a.buckets[i].slots.size(); ++s) {
      EXPECT_EQ(a.buckets[i].slots[s].offset, b.buckets[i].slots[s].offset);
    }
  }
}

}  // namespace
}  // namespace zerosched::detail
