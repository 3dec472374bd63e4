// Cases that end in every way there is, on the rank that HARNESS_RANK names or on all: harness_test.py chooses among them
// with --gtest_filter and looks at what becomes of the program.
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <string>

namespace {

bool here() {
  const char* chosen = std::getenv("HARNESS_RANK");
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return chosen == nullptr || rank == nullptr || std::string(chosen) == rank;
}

// GoogleTest runs them in this order.
TEST(Case, Passes) {}

TEST(Case, Skips) {
  if (here()) GTEST_SKIP() << "needs a moon";
}

TEST(Case, Fails) {
  if (here()) FAIL() << "expected";
}

TEST(Case, Crashes) {
  if (here()) std::raise(SIGKILL);
}

}  // namespace
