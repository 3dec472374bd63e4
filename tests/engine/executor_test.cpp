// Streams of an executor: who comes after whom.
#include "engine/executor.h"
#include "device/fake_runtime.h"

#include <gtest/gtest.h>

namespace zerosched::detail {
namespace {

class Executor : public ::testing::Test {
 protected:
  // Something that is done once `stream` gets there, and whether it had been done when another stream got there.
  void do_it_in(device::Stream stream) {
    runtime.enqueue(stream, [this] { return done = true; });
  }
  void look_from(device::Stream stream) {
    runtime.enqueue(stream, [this] {
      seen = done;
      return true;
    });
    runtime.synchronize(stream);
  }

  testing::FakeRuntime runtime;
  const device::Stream first = runtime.current_stream(0);
  DeviceExecutor executor{runtime, 0};
  bool done = false, seen = false;
};

TEST_F(Executor, WhoEntersComesAfterAllBefore) {
  const auto use = executor.enter();
  do_it_in(first);
  const device::Stream second = runtime.create_stream(0);
  runtime.set_current_stream(second);
  const auto other_use = executor.enter();
  look_from(second);
  EXPECT_TRUE(seen);
}

TEST_F(Executor, BesideComesAfterAllUsersIfAsked) {
  for (const bool after_all : {true, false}) {
    done = false;
    const auto use = executor.enter();
    do_it_in(first);
    const auto beside = executor.beside(after_all);
    EXPECT_NE(executor.current_stream().handle, first.handle);
    look_from(executor.current_stream());
    EXPECT_EQ(seen, after_all);
    runtime.synchronize(first);
  }
  EXPECT_EQ(executor.current_stream().handle, first.handle);
}

TEST_F(Executor, UsersDoNotComeAfterWhatIsBeside) {
  {
    const auto beside = executor.beside(false);
    do_it_in(executor.current_stream());
  }
  const auto use = executor.enter();
  look_from(first);
  EXPECT_FALSE(seen);
}

TEST_F(Executor, WhatWasNotedComesBeforeWhoEntersNext) {
  for (const bool notes : {true, false}) {
    done = false;
    const device::Stream backward = runtime.create_stream(0);
    runtime.set_current_stream(backward);
    do_it_in(backward);
    if (notes) executor.note();
    runtime.set_current_stream(first);
    const auto use = executor.enter();
    look_from(first);
    EXPECT_EQ(seen, notes);
  }
}

}  // namespace
}  // namespace zerosched::detail
