#pragma once

#include "kernels/device_memory.h"

#include <gtest/gtest.h>

#include <string>

namespace zerosched::kernels::testing {

/// Skips what needs a GPU where there is none, saying why.
class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = why_no_gpu();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

}  // namespace zerosched::kernels::testing
