#pragma once

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace zerosched::testing {

/// The exit code of a run in which nothing failed and a case was skipped: SKIP_RETURN_CODE in
/// tests/CMakeLists.txt. A message would not do: CTest would look for it in the output of failures, too.
constexpr int kSkipped = 77;

/// Notes why cases of this process are skipped.
class Skips final : public ::testing::EmptyTestEventListener {
 public:
  /// A line "SKIPPED: reason" for each reason, which is what tests/run looks for.
  std::string text() const {
    std::string lines;
    for (const std::string& reason : reasons_) lines += "SKIPPED: " + reason + "\n";
    return lines;
  }

 private:
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (result.skipped()) reasons_.insert(*result.summary() == '\0' ? "no reason given" : result.summary());
  }

  std::set<std::string> reasons_;
};

}  // namespace zerosched::testing
