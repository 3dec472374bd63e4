#pragma once

#include "io/checkpoint_summary.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

// Finding checkpoints, for those who only read. No lock is needed: what has a checkpoint's name is whole. What is not
// there or does not parse is no checkpoint; what is there and cannot be read is a std::system_error, as a training that
// starts anew because of it would replace what it could go on with.
namespace zerosched::detail {

/// How much of a manifest has "created": it is among the first members of every one.
inline constexpr size_t kManifestHeadBytes = 4096;

/// What a whole checkpoint at `path` says of itself; nothing if there is none.
std::optional<CheckpointSummary> summary_of(const std::filesystem::path& path);

struct FoundCheckpoint {
  int64_t created = 0;  ///< nanoseconds since 1970, each later than what was saved in the same folder before
  std::filesystem::path path;
};

/// What looks like a checkpoint in `root`, from the oldest to the newest. Whether it is whole summary_of() tells; here only
/// the beginning of each manifest is read. With those that wait under a hidden name, because the job that was about to
/// name them was killed.
std::vector<FoundCheckpoint> checkpoints_in(const std::filesystem::path& root);

/// Of a checkpoint `name` that is not there, or only an empty folder, the folder of a killed job that is to become it; an
/// empty path if there is none.
std::filesystem::path waiting_under_hidden_name(const std::filesystem::path& root, const std::string& name);

/// latest_checkpoint() of one process.
std::string newest_checkpoint(const std::string& root);

/// Where the checkpoint called `path` is: there, or what `path` names if it is a link or a `latest` that is a file, or under
/// its hidden name. So what is read from the result is of one checkpoint, also if a link moves on. If it is nowhere, the
/// path where it should be.
std::string resolve_checkpoint(const std::string& path);

}  // namespace zerosched::detail
