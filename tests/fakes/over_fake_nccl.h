#pragma once

#include "comm/nccl/nccl_backend.h"
#include "fakes/fake_nccl.h"
#include "support/world.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>

namespace zerosched::testing {

/// A communicator of the world over the fake NCCL, which is as in a new process, and the fake device.
inline std::shared_ptr<Communicator> over_fake_nccl(FakeRuntime& runtime, double watch_seconds = 0.005) {
  auto& fake = FakeNccl::instance();
  fake.reset(runtime);
  detail::NcclOptions options;
  options.timeout_seconds = 20;
  options.watch_seconds = watch_seconds;
  options.api = &fake.api();
  options.runtime = &runtime;
  return detail::make_nccl_communicator(*world(), std::nullopt, options);
}

/// Once all communicators and tensors are gone.
inline void expect_nothing_left(const FakeRuntime& runtime) {
  EXPECT_EQ(FakeNccl::instance().misuse(), "");
  EXPECT_EQ(FakeNccl::instance().live_comms, 0);
  EXPECT_EQ(FakeNccl::instance().live_windows, 0);
  EXPECT_EQ(FakeNccl::instance().live_allocations, 0);
  EXPECT_EQ(runtime.live_events(), 0);
  EXPECT_EQ(runtime.live_streams(), 1);
}

}  // namespace zerosched::testing
