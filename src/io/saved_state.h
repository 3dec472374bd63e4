#pragma once

#include "engine/engine.h"
#include "io/manifest.h"
#include "io/tensor_file.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace zerosched::detail {

/// The state in a checkpoint's rank files, as the manifest says it was cut, for an optimizer that may be cut
/// otherwise.
class SavedState {
 public:
  /// Throws std::runtime_error, naming the parameter, unless the manifest's pieces cover each state tensor of
  /// each of the engine's parameters exactly once, and of no other. Reads no file.
  SavedState(const Manifest& manifest, const Engine& engine, std::string dir);

  /// Verifies the checksums of all pieces that this rank needs a part of. Throws naming the file.
  void verify() const;
  /// Overwrites this rank's shards. To be called after verify().
  void read_into_shards() const;

 private:
  struct SavedPiece {
    int64_t begin = 0, end = 0;
    const std::string* file = nullptr;  ///< in the manifest
    std::string tensor;
    const std::string* checksum = nullptr;
  };
  /// Elements [begin, begin + to.numel()) of a saved piece, and where they belong.
  struct Part {
    const SavedPiece* piece = nullptr;
    int64_t begin = 0;
    at::Tensor to;
  };

  void check_coverage() const;
  std::map<std::string, std::vector<Part>> parts_by_file() const;

  const Engine& engine_;
  std::string dir_;
  std::map<std::string, uint64_t> file_bytes_;
  /// By state tensor and parameter, as the engine numbers them; sorted by begin.
  std::vector<std::vector<std::vector<SavedPiece>>> pieces_;
};

}  // namespace zerosched::detail
