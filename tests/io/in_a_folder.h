#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include <stdlib.h>

namespace zerosched::testing {

using Names = std::set<std::string>;

/// Runs `function`, which must throw, and looks for all `parts` in what it says.
inline void expect_message(const std::function<void()>& function, const std::vector<std::string>& parts) {
  std::string message = "no error";
  try {
    function();
  } catch (const std::exception& error) {
    message = error.what();
  }
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is missing in: " << message;
  }
}

/// A folder of one process that goes with the test.
class InAFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "zerosched-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root); }
  std::string at(const std::string& name) const { return root + '/' + name; }
  void put(const std::string& name, const std::string& text = "mine") const {
    std::filesystem::create_directories(std::filesystem::path(at(name)).parent_path());
    std::ofstream(at(name)) << text;
  }
  Names names() const {
    Names found;
    for (const auto& entry : std::filesystem::directory_iterator(root)) found.insert(entry.path().filename());
    return found;
  }

  std::string root;
};

}  // namespace zerosched::testing
