// The main() of test programs of one process.
#include "support/skips.h"

#include <gtest/gtest.h>

#include <cstdio>

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  auto* skips = new zerosched::testing::Skips;  // owned by GoogleTest
  ::testing::UnitTest::GetInstance()->listeners().Append(skips);
  const bool failed = RUN_ALL_TESTS() != 0;
  std::fputs(skips->text().c_str(), stdout);
  if (failed) return 1;
  return skips->text().empty() ? 0 : zerosched::testing::kSkipped;
}
