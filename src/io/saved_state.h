#pragma once

#include "io/manifest.h"
#include "io/tensor_file.h"

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// The state in a checkpoint's rank files, as the manifest says it was cut.
class SavedState {
 public:
  /// Throws std::runtime_error, naming the parameter, unless the pieces cover each state tensor of each saved parameter
  /// exactly once, and there are no others. Reads no file. Both must outlive this.
  SavedState(const Manifest& manifest, const std::string& dir);

  /// Names of the tensors: "z", "x", "v".
  const std::set<std::string>& tensors() const { return tensors_; }
  const Manifest& manifest() const { return manifest_; }

 private:
  friend class StateReader;

  struct SavedPiece {
    int64_t begin = 0, end = 0;
    const std::string* file = nullptr;  ///< in the manifest
    std::string tensor;
    const std::string* checksum = nullptr;
  };

  void check_coverage() const;

  const Manifest& manifest_;
  const std::string& dir_;
  std::set<std::string> tensors_;
  /// By tensor and parameter; sorted by begin.
  std::map<std::pair<std::string, std::string>, std::vector<SavedPiece>> pieces_;
};

/// Reads parts of a saved state, each file once.
class StateReader {
 public:
  explicit StateReader(const SavedState& saved) : saved_(saved) {}

  /// Elements [begin, begin + to.numel()) of a saved tensor of a saved parameter, in the order in which the parameter lies
  /// in memory, are to go to `to`, which is flat and contiguous.
  void want(const std::string& tensor, const std::string& parameter, int64_t begin, const at::Tensor& to);

  /// Verifies the checksums of all pieces of which something is wanted. Throws naming the file.
  void verify() const;
  /// Overwrites the targets, which are on the executor's device. To be called after verify().
  void read(Executor& executor) const;

 private:
  /// Elements [begin, begin + to.numel()) of a saved piece, and where they belong.
  struct Part {
    const SavedState::SavedPiece* piece = nullptr;
    int64_t begin = 0;
    at::Tensor to;
  };

  const SavedState& saved_;
  std::map<std::string, std::vector<Part>> parts_;  ///< by file
};

}  // namespace zerosched::detail
