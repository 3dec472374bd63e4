// Threads that nobody joins stop when the process ends, wherever they are.
#include "base/while_running.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include <unistd.h>

namespace zerosched::detail {
namespace {

constexpr int kStopped = 0, kWentOn = 3;

std::atomic<int> uses{0};

// As what tears a driver down, which is there before whoever uses it.
void tear_down() {
  const int before = uses;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  _exit(uses == before && before > 0 ? kStopped : kWentOn);
}

// Ends the process while a thread uses something.
[[noreturn]] void leave_behind(bool careful) {
  std::atexit(tear_down);
  WhileRunning::watch_exit();
  std::thread([careful] {
    for (;;) {
      const auto running = careful ? std::make_unique<WhileRunning>() : nullptr;
      ++uses;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      ++uses;
    }
  }).detach();
  while (uses < 100) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::exit(1);
}

// Processes of their own: a child that fork() makes parks no threads.
class WhileRunningDeathTest : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(WhileRunningDeathTest, ParksThreadsBeforeWhatTheyUseGoes) {
  EXPECT_FALSE(WhileRunning::is_over());
  EXPECT_EXIT(leave_behind(true), ::testing::ExitedWithCode(kStopped), "");
  EXPECT_EXIT(leave_behind(false), ::testing::ExitedWithCode(kWentOn), "") << "a thread that does not look";
}

TEST_F(WhileRunningDeathTest, AThreadThatIsStuckHoldsTheEndUpForASecond) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EXIT(
      {
        WhileRunning::watch_exit();
        std::thread([] {
          const WhileRunning running;
          for (;;) pause();
        }).detach();
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        std::exit(5);
      },
      ::testing::ExitedWithCode(5), "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

}  // namespace
}  // namespace zerosched::detail
