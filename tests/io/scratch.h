#pragma once

#include "support/gather.h"

#include <filesystem>
#include <stdexcept>
#include <string>

#include <stdlib.h>

namespace zerosched::testing {

/// A folder that all ranks share and that goes with the object. Collective.
class Scratch {
 public:
  Scratch() {
    std::string made;
    if (world_rank() == 0) {
      std::string pattern = (std::filesystem::temp_directory_path() / "zerosched-test-XXXXXX").string();
      if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make " + pattern);
      made = pattern;
    }
    path_ = gather_texts(made).front();
  }
  ~Scratch() {
    world_barrier();
    std::error_code error;
    if (world_rank() == 0) std::filesystem::remove_all(path_, error);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::string operator/(const std::string& name) const { return path_ + '/' + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Makes of a file one that is there and that nobody can read, not even root: a link to itself.
inline void make_unreadable(const std::filesystem::path& file) {
  std::filesystem::remove(file);
  std::filesystem::create_symlink(file.filename(), file);
}

/// Runs `function` on rank 0 and lets nobody go on before. Collective.
template <typename Function>
void on_rank_0(Function&& function) {
  if (world_rank() == 0) function();
  world_barrier();
}

}  // namespace zerosched::testing
