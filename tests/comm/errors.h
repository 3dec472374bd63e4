#pragma once

#include "support/gather.h"

#include <zerosched/communicator.h>

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

namespace zerosched::testing {

/// What `call` throws, or an empty string.
template <typename Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return {};
}

/// The text that all ranks have, or what they have instead. Collective.
inline std::string common(const std::string& own) {
  const auto all = gather_texts(own);
  for (const auto& text : all) {
    if (text != all[0]) return "rank 0 has \"" + all[0] + "\", another \"" + text + "\"";
  }
  return own;
}

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Returns once `done` says so, or after 10 s, for the test to see that it does not.
template <typename Done>
void wait_until(Done&& done) {
  const auto start = std::chrono::steady_clock::now();
  while (!done() && seconds_since(start) < 10) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

inline void wait_for_failure(const Communicator& communicator) {
  wait_until([&] { return !communicator.failure().empty(); });
}

}  // namespace zerosched::testing
