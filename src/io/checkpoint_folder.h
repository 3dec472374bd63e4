#pragma once

#include <cstdint>
#include <string>

namespace zerosched::detail {

/// Where a checkpoint is written until it is whole, and how it then takes its place. One process, rank 0,
/// makes and moves folders; all write files into partial(). Errors are std::runtime_error or
/// std::filesystem::filesystem_error and name the path.
class CheckpointFolder {
 public:
  /// Throws if `path` cannot be a checkpoint's name.
  explicit CheckpointFolder(const std::string& path);

  const std::string& path() const { return path_; }
  /// "root/.step_01000.partial" for "root/step_01000".
  const std::string& partial() const { return partial_; }
  std::string file(const std::string& name) const { return partial_ + '/' + name; }

  /// Makes partial(), empty, and what is above it. Removes what a killed job left there. Throws if something
  /// is at path() or at `latest` that publish() must not replace: nothing is ever deleted that is not a
  /// checkpoint's.
  void start() const;
  /// partial() becomes path(), and replaces what was there; after a crash either of the two is there, whole.
  /// Then `latest` names it.
  void publish() const;
  /// Removes partial(), if it can. Never throws.
  void discard() const noexcept;
  /// Deletes the oldest checkpoints beside this one until `count` are left, this one among them. Folders in
  /// which somebody keeps other files too are spared and do not count. The newest whose state is finite is spared too.
  void keep_last(int64_t count) const;

 private:
  std::string root_, name_, path_, partial_;
  std::string new_link_;  ///< what becomes `latest`
};

}  // namespace zerosched::detail
