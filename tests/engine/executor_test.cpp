// Streams of an executor: who comes after whom.
#include "engine/executor.h"
#include "fakes/fake_runtime.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <cstring>

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

// Three pieces and a part of one.
constexpr int64_t kBytes = 3 * kPieceBytes + 1000;

at::Tensor some_bytes() { return at::arange(kBytes, at::kInt).div(1021, "floor").to(at::kByte); }

at::Tensor bytes_read(DeviceExecutor& executor, const at::Tensor& tensor) {
  at::Tensor read = at::empty({kBytes}, at::kByte);
  int64_t done = 0;
  executor.read(tensor, [&](const std::byte* bytes, int64_t count) {
    EXPECT_LE(count, kPieceBytes);
    std::memcpy(read.mutable_data_ptr<uint8_t>() + done, bytes, static_cast<size_t>(count));
    done += count;
  });
  EXPECT_EQ(done, kBytes);
  return read;
}

TEST_F(Executor, ReadsInPiecesWhatTheStreamHolds) {
  const at::Tensor expected = some_bytes();
  EXPECT_TRUE(at::equal(bytes_read(executor, runtime.to_device(expected)), expected));
}

TEST_F(Executor, WritesInPiecesForWhatComesAfter) {
  const at::Tensor expected = some_bytes(), tensor = runtime.empty(kBytes, at::kByte, 0);
  const auto* bytes = reinterpret_cast<const std::byte*>(expected.const_data_ptr<uint8_t>());
  executor.write(tensor, [&](std::byte* to, int64_t count) {
    std::memcpy(to, bytes, static_cast<size_t>(count));
    bytes += count;
  });
  EXPECT_TRUE(at::equal(runtime.to_host(tensor), expected));
}

// One piece is the host's while the device has the other: each is waited for, or the bytes are wrong.
TEST_F(Executor, EveryPieceIsWaitedFor) {
  const at::Tensor expected = some_bytes(), tensor = runtime.to_device(expected);
  bytes_read(executor, tensor);
  // Each piece is asked for when its buffer is to be used, and when it is to be read.
  for (const int nth : {2, 4, 6, 7}) {
    runtime.forget_query(nth);
    EXPECT_FALSE(at::equal(bytes_read(executor, tensor), expected)) << nth;
    EXPECT_TRUE(runtime.has_forgotten());
  }
}

}  // namespace
}  // namespace zerosched::detail
