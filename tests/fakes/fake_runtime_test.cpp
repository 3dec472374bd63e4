// The fake device does what it is there for: work that did not wait for what it needs finds it not done.
#include "fakes/fake_runtime.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

namespace zerosched::testing {
namespace {

TEST(FakeRuntime, RunsAStreamInOrderAndOnlyWhenAskedFor) {
  FakeRuntime runtime;
  std::string order;
  const auto stream = runtime.create_stream(0);
  for (const char c : {'a', 'b', 'c'}) {
    runtime.enqueue(stream, [&order, c] {
      order += c;
      return true;
    });
  }
  EXPECT_EQ(order, "");
  runtime.synchronize(stream);
  EXPECT_EQ(order, "abc");
}

TEST(FakeRuntime, AnEventIsAPlaceInAStream) {
  FakeRuntime runtime;
  std::string order;
  const auto first = runtime.create_stream(0);
  const auto second = runtime.create_stream(0);
  const auto event = runtime.create_event(0);
  EXPECT_TRUE(runtime.query(event)) << "never recorded";
  const auto add = [&order](char c) {
    return [&order, c] {
      order += c;
      return true;
    };
  };
  runtime.enqueue(first, add('a'));
  runtime.record(event, first);
  runtime.wait(second, event);
  runtime.enqueue(first, add('b'));  // behind the event: nobody needs it
  runtime.record(event, first);      // the wait above is for the event as it was
  runtime.enqueue(second, add('c'));
  runtime.synchronize(second);
  EXPECT_EQ(order, "ac");
  EXPECT_TRUE(runtime.query(event));
  EXPECT_EQ(order, "acb");
}

TEST(FakeRuntime, WorkThatIsNotThroughIsPolled) {
  FakeRuntime runtime;
  int polls = 0;
  const auto stream = runtime.create_stream(0);
  const auto event = runtime.create_event(0);
  runtime.enqueue(stream, [&polls] { return ++polls == 3; });
  runtime.record(event, stream);
  EXPECT_FALSE(runtime.query(event));
  EXPECT_FALSE(runtime.query(event));
  EXPECT_TRUE(runtime.query(event));
}

// A producer and a consumer on two streams; whether the consumer got what was produced.
bool consumed(FakeRuntime& runtime) {
  const auto producer = runtime.create_stream(0);
  const auto consumer = runtime.create_stream(0);
  const auto event = runtime.create_event(0);
  int value = 0;
  int seen = -1;
  runtime.enqueue(producer, [&value] {
    value = 7;
    return true;
  });
  runtime.record(event, producer);
  runtime.wait(consumer, event);
  runtime.enqueue(consumer, [&] {
    seen = value;
    return true;
  });
  runtime.synchronize(consumer);
  runtime.synchronize(producer);
  return seen == 7;
}

TEST(FakeRuntime, AForgottenWaitOrRecordIsSeen) {
  FakeRuntime whole;
  EXPECT_TRUE(consumed(whole));
  FakeRuntime without_wait;
  without_wait.forget_wait(0);
  EXPECT_FALSE(consumed(without_wait));
  EXPECT_TRUE(without_wait.has_forgotten());
  FakeRuntime without_record;
  without_record.forget_record(0);
  EXPECT_FALSE(consumed(without_record));
  FakeRuntime later;
  later.forget_wait(5);
  EXPECT_TRUE(consumed(later));
  EXPECT_FALSE(later.has_forgotten());
}

TEST(FakeRuntime, SeedsGiveOtherOrders) {
  // Without an event between them, some seeds run the producer first and some do not.
  int right = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    FakeRuntime runtime(1, seed);
    runtime.forget_wait(0);
    right += consumed(runtime) ? 1 : 0;
  }
  EXPECT_GT(right, 0);
  EXPECT_LT(right, 20);
}

TEST(FakeRuntime, MemoryThatIsFreedTooEarlyIsSeen) {
  for (const bool early : {false, true}) {
    FakeRuntime runtime;
    const auto other = runtime.create_stream(0);
    const auto event = runtime.create_event(0);
    const auto result = runtime.to_device(at::full({4}, 0.0, at::kFloat));
    auto source = runtime.to_device(at::full({4}, 3.0, at::kFloat));
    runtime.record(event, runtime.current_stream(0));
    runtime.wait(other, event);
    runtime.copy(result.data_ptr(), source.const_data_ptr(), 16, other);
    if (early) source.reset();
    runtime.record(event, other);
    runtime.wait(runtime.current_stream(0), event);
    EXPECT_EQ(at::equal(runtime.to_host(result), at::full({4}, 3.0, at::kFloat)), !early);
  }
}

using Touched = std::map<int, std::set<std::string>>;

TEST(FakeRuntime, CountsContextsAsCudaMakesThem) {
  FakeRuntime runtime(3);
  runtime.forget_touched();
  EXPECT_EQ(runtime.touched(), Touched());
  { const device::DeviceScope scope(runtime, 1); }
  EXPECT_EQ(runtime.touched(), (Touched{{1, {"exchange_device"}}})) << "and not 0, where the scope came from";
  runtime.touch_current("some library");
  EXPECT_EQ(runtime.touched().count(0), 0u) << "what is only remembered is not set";
  EXPECT_EQ(runtime.exchange_device(2), 0) << "but still what LibTorch calls the current device";
  runtime.restore_device(0);
  EXPECT_EQ(runtime.exchange_device(0), 0);
  EXPECT_EQ(runtime.touched().at(0), std::set<std::string>{"exchange_device"}) << "where it is asked for";
  { const device::DeviceScope scope(runtime, 1); }
  runtime.touch_current("some library");
  EXPECT_EQ(runtime.touched().at(0).count("some library"), 1u) << "back where there is a context already";
}

TEST(FakeRuntime, KnowsWhichStreamIsCaptured) {
  FakeRuntime runtime;
  const auto other = runtime.create_stream(0);
  runtime.set_capturing(other, true);
  EXPECT_TRUE(runtime.is_capturing(other));
  EXPECT_FALSE(runtime.is_capturing(runtime.current_stream(0)));
  runtime.set_capturing(other, false);
  EXPECT_FALSE(runtime.is_capturing(other));
}

TEST(FakeRuntime, KnowsItsTensors) {
  FakeRuntime runtime(2);
  const auto host = at::full({4}, 1.0, at::kFloat);
  const auto tensor = runtime.to_device(host, 1);
  EXPECT_EQ(runtime.device_of(host), at::Device(at::kCPU));
  EXPECT_EQ(runtime.device_of(tensor), at::Device(at::kCUDA, 1));
  EXPECT_EQ(runtime.device_of(tensor.narrow(0, 2, 2)), at::Device(at::kCUDA, 1));
  EXPECT_TRUE(at::equal(runtime.to_host(tensor), host));
}

}  // namespace
}  // namespace zerosched::testing
