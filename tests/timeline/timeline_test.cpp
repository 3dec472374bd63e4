#include "timeline/timeline.h"

#include "timeline/machine_model.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <sstream>

namespace zerosched::testing {
namespace {

TEST(Timeline, ALaneDoesOneThingAfterTheOther) {
  Timeline time;
  const int lane = time.add_lane("a");
  EXPECT_EQ(time.queue(lane, 2, Phase::forward, "first"), 2);
  EXPECT_EQ(time.queue(lane, 3, Phase::backward, "second"), 5);
  EXPECT_EQ(time.now(), 0) << "the host does not wait for what it gives";
  ASSERT_EQ(time.spans().size(), 2U);
  EXPECT_EQ(time.spans()[1].begin, 2);
  EXPECT_EQ(time.spans()[1].end, 5);
}

TEST(Timeline, NothingBeginsBeforeTheHostHasGivenIt) {
  Timeline time;
  const int lane = time.add_lane("a");
  time.work(4, Phase::other, "call");
  EXPECT_EQ(time.queue(lane, 1, Phase::other, "late"), 5);
}

TEST(Timeline, AHoldIsForWhatComesLater) {
  Timeline time;
  const int a = time.add_lane("a"), b = time.add_lane("b");
  time.queue(b, 1, Phase::other, "before");
  time.hold(b, time.queue(a, 7, Phase::other, "long"));
  EXPECT_EQ(time.queue(b, 1, Phase::other, "after"), 8);
  EXPECT_EQ(time.spans().front().end, 1);
}

TEST(Timeline, OnlyABlockMakesTheHostWait) {
  Timeline time;
  const int lane = time.add_lane("a");
  time.block(time.queue(lane, 3, Phase::other, "work"), "synchronize");
  EXPECT_EQ(time.now(), 3);
  time.block(1, "what is past");
  EXPECT_EQ(time.now(), 3);
  EXPECT_EQ(time.blocks(), 1);
}

TEST(Periods, AreSetsOfPoints) {
  const std::vector<Span> spans = {{1, Phase::backward, "", 0, 4}, {2, Phase::backward, "", 3, 6},
      {1, Phase::backward, "", 8, 9}, {Timeline::kHost, Phase::backward, "", 0, 100},
      {1, Phase::reduce_scatter, "", 5, 8.5}, {1, Phase::reduce_scatter, "", 20, 21}};
  const Periods backward = Periods::of(spans, Phase::backward, 1, 10);
  EXPECT_DOUBLE_EQ(backward.seconds(), 5 + 1);
  const Periods reduce = Periods::of(spans, Phase::reduce_scatter, 1, 10);
  EXPECT_DOUBLE_EQ(reduce.seconds(), 3.5);
  EXPECT_DOUBLE_EQ(reduce.without(backward).seconds(), 2);
  EXPECT_DOUBLE_EQ(backward.without(reduce).seconds(), 4.5);
  EXPECT_DOUBLE_EQ(reduce.with(backward).seconds(), 8);
  EXPECT_DOUBLE_EQ(Periods().without(backward).seconds(), 0);
}

TEST(Timeline, TraceIsChromes) {
  Timeline time;
  const int lane = time.add_lane("stream");
  time.queue(lane, 1, Phase::forward, "before");
  time.queue(lane, 2, Phase::backward, "blocks.0");
  std::ostringstream out;
  write_trace(out, time, 1, 3);
  const auto trace = nlohmann::json::parse(out.str());
  std::vector<nlohmann::json> spans;
  for (const auto& event : trace.at("traceEvents")) {
    if (event.at("ph") == "X") spans.push_back(event);
  }
  ASSERT_EQ(spans.size(), 1U);
  EXPECT_EQ(spans[0].at("name"), "blocks.0");
  EXPECT_EQ(spans[0].at("cat"), "backward");
  EXPECT_EQ(spans[0].at("tid"), lane);
  EXPECT_EQ(spans[0].at("ts"), 0);
  EXPECT_DOUBLE_EQ(spans[0].at("dur"), 2e6);
}

// The figures that it is made of, as they were measured.
TEST(MachineModel, IsThatOfPublishedRuns) {
  EXPECT_EQ(h100(1).collective(1e9), 0);
  EXPECT_NEAR(h100(8).collective(0), 32e-6, 2e-6);
  EXPECT_NEAR(h100(512).collective(0), 2.4e-3, 0.2e-3);
  const double bytes = 1e12;
  EXPECT_NEAR(bytes * 7 / 8 / h100(8).collective(bytes), 360e9, 1e9);
  EXPECT_NEAR(bytes / h100(1024).collective(bytes), 260e9, 1e9);
}

}  // namespace
}  // namespace zerosched::testing
