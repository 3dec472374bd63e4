#pragma once

#include "io/checkpoint_summary.h"
#include "io/folder_lock.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::detail {

/// Where a checkpoint is written until it is whole, and how it then takes its place; README.md has the protocol. One
/// process, rank 0, makes and moves folders; all write files into partial(). Errors are std::runtime_error or
/// std::filesystem::filesystem_error and name the path.
class CheckpointFolder {
 public:
  /// Throws if `path` cannot be a checkpoint's name.
  explicit CheckpointFolder(const std::string& path);

  const std::string& path() const { return path_; }
  /// "root/.step_01000.partial" for "root/step_01000".
  const std::string& partial() const { return partial_; }
  std::string file(const std::string& name) const { return partial_ + '/' + name; }

  /// Locks the folder above and makes partial(), empty, with `parts` folders of several optimizers, and what is above it.
  /// Cleans up after killed jobs. Throws if something is at path() or at `latest` that publish() must not replace: nothing
  /// is ever deleted that is not a checkpoint's. `of` is the checkpoint that will be: one at path() of another optimizer
  /// that is still being trained is not replaced either.
  void start(
      const CheckpointSummary& of, size_t parts, const std::function<void(const std::string&)>& notice);
  /// When the checkpoint is made: now, and later than all that were saved here before. After start().
  int64_t created() const { return created_; }
  /// partial() becomes path(), and replaces what was there; after a crash either of the two is there, whole.
  /// Then `latest` names it. What of the old one cannot be deleted stays for the next save. If it throws, the old one is at
  /// path() again, where the file system allows that; calls `notice` with what goes wrong once the checkpoint is there.
  void publish(const std::function<void(const std::string&)>& notice);
  /// Removes partial(), if it can, and unless that is the old checkpoint by now. Never throws.
  void discard() noexcept;
  /// Deletes the oldest checkpoints beside this one until `count` are left, this one among them. Only those count that are
  /// of the same training and sequence of names; folders in which somebody keeps other files too are spared and do not
  /// count. The newest whose state is finite is spared too. Those of another job that is known to run do not
  /// count. Calls `notice` with what cannot be looked at or deleted.
  void keep_last(int64_t count, const std::function<void(const std::string&)>& notice) const;

 private:
  void check_replaceable(const CheckpointSummary& of) const;
  void replace() const;
  bool put_back() const noexcept;
  std::vector<std::filesystem::path> excess_over(int64_t count) const;

  std::string root_, name_, path_, partial_;
  std::string replaced_;  ///< where the old one is after publish() without an exchange of names
  std::optional<FolderLock> lock_;
  int64_t created_ = 0;
  bool may_discard_ = false;  ///< partial_ is what this one has made
};

}  // namespace zerosched::detail
