#include "io/folder_contents.h"

#include "base/random_id.h"
#include "io/checkpoint_list.h"
#include "io/checkpoint_names.h"
#include "io/file.h"
#include "io/folder_lock.h"

#include <stdexcept>
#include <system_error>

namespace zerosched::detail {

namespace fs = std::filesystem;

namespace {

bool consists_of_ours(const fs::path& folder, bool may_have_parts) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    const auto status = entry.symlink_status();
    if (fs::is_regular_file(status) && is_kept_by_nfs(name)) continue;
    const bool is_file = fs::is_regular_file(status) && is_checkpoint_file(name);
    const bool is_part = may_have_parts && fs::is_directory(status) && is_part_name(name);
    if (!is_file && !(is_part && consists_of_ours(entry.path(), false))) return false;
  }
  return true;
}

bool is_folder(const fs::path& path) { return type_of(path) == fs::file_type::directory; }

// Whether a hidden entry is a checkpoint that has no name yet. Throws if that cannot be known: it may be the only one.
bool is_waiting(const fs::path& root, const std::string& hidden, const std::string& name) {
  const auto found = if_permitted([&] { return waiting_under_hidden_name(root, name); });
  return found && *found == root / hidden;
}

// Whether a folder is all that there is of a checkpoint whose name something else has taken.
bool is_the_last(const fs::path& root, const std::string& hidden) {
  for (const char* suffix : {kPartial, kReplaced}) {
    const auto name = name_behind(hidden, suffix);
    if (name && summary_of(root / hidden) && !summary_of(root / *name)) return true;
  }
  return false;
}

// All that can be deleted; the first error is that of the whole.
void remove_contents(const fs::path& folder, std::error_code& first) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    std::error_code error;
    if (is_folder(entry.path())) remove_contents(entry.path(), first);
    fs::remove(entry.path(), error);
    if (error && !first) first = error;
  }
}

// What of a hidden folder cannot be deleted yet must not keep its name from the next save.
void remove_or_rename(const fs::path& root, const std::string& hidden) {
  try {
    remove_folder(root / hidden);
  } catch (const std::exception&) {
    for (const char* suffix : {kPartial, kReplaced}) {
      const auto name = name_behind(hidden, suffix);
      if (name) rename_entry(root / hidden, root / hidden_name(*name + '.' + random_name(), kDeleted));
    }
    throw;
  }
}

// Deletes what is ours by its name, its kind and what it holds.
void clean(const fs::path& root, const std::string& hidden) {
  const fs::path path = root / hidden;
  if (name_behind(hidden, kPartial) || name_behind(hidden, kReplaced) || name_behind(hidden, kDeleted)) {
    if (is_folder(path) && holds_only_ours(path) && !is_the_last(root, hidden))
      remove_or_rename(root, hidden);
  } else if (is_export(hidden) || hidden == kNewLatest || is_left_of_lock(hidden)) {
    if (!is_folder(path)) fs::remove(path);
  }
}

}  // namespace

bool holds_only_ours(const fs::path& folder) { return consists_of_ours(folder, /*may_have_parts=*/true); }

void remove_folder(const fs::path& folder) {
  if (type_of(folder) == fs::file_type::not_found) return;
  if (!is_folder(folder) || !holds_only_ours(folder)) {
    throw std::runtime_error(
        folder.string() + ": is in the way and holds more than an unfinished checkpoint; move it away");
  }
  // The manifest first: without it nobody takes the rest for a checkpoint.
  fs::remove(folder / kManifestName);
  std::error_code error;
  remove_contents(folder, error);
  if (error) throw fs::filesystem_error("cannot be deleted", folder, error);
  fs::remove(folder);
}

void remove_checkpoint(const fs::path& path) {
  const fs::path doomed = path.parent_path() / hidden_name(path.filename(), kDeleted);
  remove_folder(doomed);
  rename_entry(path, doomed);
  remove_folder(doomed);
}

void take_up_leftovers(const fs::path& root) {
  std::vector<std::string> hidden;
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string name = entry.path().filename();
    if (name[0] == '.') hidden.push_back(name);
  }
  bool named = false;
  for (const std::string& entry : hidden) {
    for (const char* suffix : {kPartial, kReplaced}) {
      const auto name = name_behind(entry, suffix);
      try {
        if (!name || !is_waiting(root, entry, *name)) continue;
        rename_entry(root / entry, root / *name);
        named = true;
      } catch (const std::exception&) {
        // It is another user's, or the disk fails: no reason not to save other checkpoints here.
      }
    }
  }
  if (named) sync_folder(root);
  for (const std::string& entry : hidden) {
    try {
      clean(root, entry);
    } catch (const std::exception&) {
      // Somebody still reads it over NFS, or it is another user's.
    }
  }
}

}  // namespace zerosched::detail
