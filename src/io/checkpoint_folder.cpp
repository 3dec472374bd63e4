#include "io/checkpoint_folder.h"

#include "io/file.h"
#include "io/manifest.h"

#include <zerosched/checkpoint.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

namespace zerosched {

namespace detail {

namespace fs = std::filesystem;

namespace {

constexpr const char* kLatest = "latest";

// The manifest of the checkpoint at `path`, if there is one.
std::optional<Manifest> manifest_in(const fs::path& path) {
  try {
    return parse_manifest(read_text(path / kManifestName));
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

bool is_ours(const std::string& file_name) {
  constexpr const char* kRankPrefix = "rank_";
  return file_name == kManifestName || file_name == kModuleFileName ||
         file_name == std::string(kManifestName) + kUnfinished || file_name.rfind(kRankPrefix, 0) == 0;
}

// Only files that a checkpoint consists of: what else somebody keeps in a folder is never deleted.
bool holds_only_ours(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (!is_ours(entry.path().filename()) || !entry.is_regular_file()) return false;
  }
  return true;
}

// Does nothing if there is no such folder.
void remove_folder(const fs::path& folder) {
  if (!fs::exists(fs::symlink_status(folder))) return;
  if (!fs::is_directory(fs::symlink_status(folder)) || !holds_only_ours(folder)) {
    throw std::runtime_error(
        folder.string() + ": is in the way and holds more than an unfinished checkpoint; move it away");
  }
  for (const auto& entry : fs::directory_iterator(folder)) fs::remove(entry.path());
  fs::remove(folder);
}

struct Found {
  int64_t created;
  fs::path path;
  bool finite;
};

// Checkpoints in `root` from the oldest to the newest. What is not a whole checkpoint is none of our
// business.
std::vector<Found> checkpoints_in(const fs::path& root) {
  std::vector<Found> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root, error)) {
    const std::string name = entry.path().filename();
    if (name[0] == '.' || !fs::is_directory(entry.symlink_status(error))) continue;
    if (const auto manifest = manifest_in(entry.path())) {
      found.push_back({manifest->created, entry.path(), manifest->finite});
    }
  }
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return std::tie(a.created, a.path) < std::tie(b.created, b.path);
  });
  return found;
}

// Renamed first: a folder that is half deleted must not have a checkpoint's name.
void remove_checkpoint(const fs::path& path) {
  const fs::path doomed = path.parent_path() / ('.' + path.filename().string() + ".deleted");
  remove_folder(doomed);
  fs::rename(path, doomed);
  remove_folder(doomed);
}

// Whether the two have changed places; false if this file system or kernel has no such call.
bool exchange(const std::string& a, const std::string& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP) return false;
  throw std::runtime_error(b + ": cannot be replaced: " + std::generic_category().message(errno));
}

}  // namespace

CheckpointFolder::CheckpointFolder(const std::string& path) {
  fs::path whole = path;
  if (!whole.has_filename()) whole = whole.parent_path();  // "step_01000/"
  name_ = whole.filename();
  if (name_.empty() || name_[0] == '.' || name_ == kLatest) {
    throw std::runtime_error("'" + path +
                             "' cannot be a checkpoint's folder: it needs a name of its own that does not "
                             "start with a dot and is not \"latest\", such as run/step_01000");
  }
  root_ = whole.has_parent_path() ? whole.parent_path().string() : ".";
  path_ = fs::path(root_) / name_;
  partial_ = fs::path(root_) / ('.' + name_ + ".partial");
  new_link_ = fs::path(root_) / (std::string(".") + kLatest + ".new");
}

void CheckpointFolder::start() const {
  if (fs::exists(fs::symlink_status(path_))) {
    const bool replaceable = fs::is_directory(fs::symlink_status(path_)) && holds_only_ours(path_) &&
                             (fs::is_empty(path_) || manifest_in(path_));
    if (!replaceable) {
      throw std::runtime_error(
          path_ +
          ": is there already, and is neither an empty folder nor a checkpoint and nothing "
          "else; save under another name, or move it away");
    }
  }
  fs::create_directories(root_);
  const auto latest = fs::symlink_status(fs::path(root_) / kLatest);
  if (fs::exists(latest) && !fs::is_symlink(latest)) {
    throw std::runtime_error(
        root_ + '/' + kLatest + ": is in the way of the link that names the newest checkpoint; move it away");
  }
  remove_folder(partial_);
  fs::remove(new_link_);
  fs::create_directory(partial_);
  // Here, so that a file system without links is noticed before anything is replaced.
  fs::create_symlink(name_, new_link_);
}

void CheckpointFolder::publish() const {
  sync_folder(partial_);
  if (fs::exists(path_) && !fs::is_empty(path_)) {
    // Where names cannot be exchanged there is a moment without a checkpoint of this name: `latest` may then
    // name nothing, and latest_checkpoint() takes the newest that is there.
    if (!exchange(partial_, path_)) {
      remove_checkpoint(path_);
      fs::rename(partial_, path_);
    }
    sync_folder(root_);
    remove_folder(partial_);
  } else {
    fs::rename(partial_, path_);
    sync_folder(root_);
  }
  fs::rename(new_link_, fs::path(root_) / kLatest);
  sync_folder(root_);
}

void CheckpointFolder::discard() const noexcept {
  try {
    fs::remove(new_link_);
    remove_folder(partial_);
  } catch (const std::exception&) {
    // The error that led here is thrown; the next save under this name removes what is left.
  }
}

void CheckpointFolder::keep_last(int64_t count) const {
  std::vector<Found> checkpoints = checkpoints_in(root_);
  // Training that has gone wrong goes on saving, and must not replace the last state that was right.
  const auto healthy = std::find_if(
      checkpoints.rbegin(), checkpoints.rend(), [](const Found& checkpoint) { return checkpoint.finite; });
  const fs::path last_healthy = healthy == checkpoints.rend() ? fs::path() : healthy->path;
  const auto foreign = [](const Found& checkpoint) { return !holds_only_ours(checkpoint.path); };
  checkpoints.erase(std::remove_if(checkpoints.begin(), checkpoints.end(), foreign), checkpoints.end());
  auto excess = static_cast<int64_t>(checkpoints.size()) - count;
  for (const Found& checkpoint : checkpoints) {
    if (excess <= 0) return;
    if (checkpoint.path == path_ || checkpoint.path == last_healthy) continue;
    remove_checkpoint(checkpoint.path);
    --excess;
  }
}

}  // namespace detail

std::string latest_checkpoint(const std::string& root) {
  namespace fs = detail::fs;
  std::error_code error;
  const fs::path named = fs::read_symlink(fs::path(root) / detail::kLatest, error);
  if (!error && fs::exists(fs::path(root) / named / detail::kManifestName, error))
    return fs::path(root) / named;
  const auto checkpoints = detail::checkpoints_in(root);
  return checkpoints.empty() ? std::string() : checkpoints.back().path.string();
}

}  // namespace zerosched
