#include "io/checkpoint_folder.h"

#include "engine/checkpoint_series.h"
#include "io/checkpoint_list.h"
#include "io/checkpoint_names.h"
#include "io/file.h"
#include "io/folder_contents.h"
#include "io/latest.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <stdexcept>
#include <vector>

#include <fcntl.h>

namespace zerosched::detail {

namespace fs = std::filesystem;

namespace {

// Whether the two have changed places; false if this file system or kernel has no such call.
bool exchange(const std::string& a, const std::string& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  fail_with_reason(b, "cannot be replaced", errno);
}

int64_t nanoseconds_since_1970() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// Jobs that have loaded the same checkpoint are of one series.
bool is_of_another_that_runs(const CheckpointSummary& summary) {
  return summary.job && !(*summary.job == JobIdentity::own()) && life_of(*summary.job) == Life::runs;
}

// Who must not lose the checkpoint that is replaced; empty if nobody.
std::string whose(const CheckpointSummary& old, const CheckpointSummary& of) {
  if (!old.job) return {};
  const bool is_own = old.series == of.series;
  if (*old.job == JobIdentity::own()) {
    const bool lives = std::any_of(old.series.begin(), old.series.end(), CheckpointSeries::lives);
    return is_own || !lives ? "" : "another optimizer of this job, " + old.optimizers.front();
  }
  return is_of_another_that_runs(old) ? name_of(*old.job) + ", which still runs" : "";
}

}  // namespace

CheckpointFolder::CheckpointFolder(const std::string& path) {
  fs::path whole = path;
  if (!whole.has_filename()) whole = whole.parent_path();  // "step_01000/"
  name_ = whole.filename();
  if (!is_checkpoint_name(name_)) {
    throw std::runtime_error("'" + path +
                             "' cannot be a checkpoint's folder: it needs a name of its own that does not "
                             "start with a dot and is not \"latest\", such as run/step_01000");
  }
  root_ = whole.has_parent_path() ? whole.parent_path().string() : ".";
  path_ = fs::path(root_) / name_;
  partial_ = fs::path(root_) / hidden_name(name_, kPartial);
  replaced_ = fs::path(root_) / hidden_name(name_, kReplaced);
}

void CheckpointFolder::check_replaceable(const CheckpointSummary& of) const {
  if (fs::exists(fs::symlink_status(path_))) {
    const bool is_folder = fs::is_directory(fs::symlink_status(path_)) && holds_only_ours(path_);
    const auto old = is_folder ? summary_of(path_) : std::nullopt;
    if (!is_folder || !(fs::is_empty(path_) || old)) {
      throw std::runtime_error(
          path_ +
          ": is there already, and is neither an empty folder nor a checkpoint and nothing "
          "else; save under another name, or move it away");
    }
    const std::string owner = old ? whose(*old, of) : std::string();
    if (!owner.empty()) {
      throw std::runtime_error(
          path_ + ": is the checkpoint of " + owner +
          "; save under another name, or several optimizers of one job as one checkpoint: "
          "zerosched::save_checkpoint(dir, {&first, &second})");
    }
  }
  if (!latest_is_ours(root_)) {
    throw std::runtime_error(
        root_ + '/' + kLatest + ": is in the way of the link that names the newest checkpoint; move it away");
  }
}

void CheckpointFolder::start(
    const CheckpointSummary& of, size_t parts, const std::function<void(const std::string&)>& notice) {
  make_folders(root_);
  try {
    sync_folder(folder_of(root_));  // a folder that the trainer has just made
  } catch (const std::exception&) {
    // Of one that only others may read.
  }
  lock_.emplace(root_, notice);
  take_up_leftovers(root_);
  check_replaceable(of);
  if (type_of(partial_) != fs::file_type::not_found) {
    throw std::runtime_error(
        partial_ + ": is in the way, and is no unfinished checkpoint that can be deleted; move it away");
  }
  created_ = nanoseconds_since_1970();
  try {
    const std::vector<FoundCheckpoint> before = checkpoints_in(root_);
    const int64_t newest = before.empty() ? 0 : before.back().created;
    // Clocks differ, and are set.
    if (newest >= created_ && newest < std::numeric_limits<int64_t>::max()) created_ = newest + 1;
  } catch (const std::exception& error) {
    notice(
        path_ + ": may count as older than what other hosts save, if their clocks differ: " + error.what());
  }
  prepare_latest(root_, name_);
  may_discard_ = true;
  fs::create_directory(partial_);
  for (size_t part = 0; part < parts; ++part) fs::create_directory(file(part_name(part)));
}

// One of the two has the name at every moment, or where names cannot be exchanged, is whole beside it under a hidden name
// that readers know.
void CheckpointFolder::replace() const {
  if (!fs::exists(path_) || fs::is_empty(path_)) return rename_entry(partial_, path_);
  if (exchange(partial_, path_)) return;
  rename_entry(path_, replaced_);
  try {
    rename_entry(partial_, path_);
  } catch (const std::exception&) {
    std::rename(replaced_.c_str(), path_.c_str());
    throw;
  }
}

// Undoes replace(). Whether it could.
bool CheckpointFolder::put_back() const noexcept {
  try {
    if (fs::exists(partial_)) return exchange(partial_, path_);
    rename_entry(path_, partial_);
    if (fs::exists(replaced_)) rename_entry(replaced_, path_);
    return true;
  } catch (const std::exception&) {
    return false;  // the file system fails; what is there is whole, old or new
  }
}

void CheckpointFolder::publish(const std::function<void(const std::string&)>& notice) {
  lock_->check_held();
  replace();
  try {
    sync_folder(root_);
    publish_latest(root_);
  } catch (const std::exception&) {
    may_discard_ = put_back();
    throw;
  }
  // From here on the checkpoint is there, and what goes wrong is no failure to save it.
  try {
    sync_folder(root_);
  } catch (const std::exception& error) {
    notice(path_ + ": is saved, but after a crash " + kLatest + " may name an older one: " + error.what());
  }
  for (const std::string& old : {partial_, replaced_}) {
    try {
      remove_folder(old);
    } catch (const std::exception&) {
      // Somebody still reads it over NFS, or keeps files of his own there.
    }
  }
}

void CheckpointFolder::discard() noexcept {
  if (!lock_) return;
  try {
    lock_->check_held();
    fs::remove(fs::path(root_) / kNewLatest);
    if (may_discard_) remove_folder(partial_);
  } catch (const std::exception&) {
    // The error that led here is thrown; the next save in this folder removes what is left.
  }
}

void CheckpointFolder::keep_last(int64_t count, const std::function<void(const std::string&)>& notice) const {
  std::vector<fs::path> excess;
  try {
    excess = excess_over(count);
  } catch (const std::exception& error) {
    notice(path_ + ": is saved, but no older checkpoint was deleted: " + error.what());
  }
  for (const fs::path& path : excess) {
    try {
      remove_checkpoint(path);
    } catch (const std::exception& error) {
      notice(path.string() + ": this older checkpoint could not be deleted: " + error.what());
    }
  }
}

std::vector<fs::path> CheckpointFolder::excess_over(int64_t count) const {
  const auto own = summary_of(path_);
  if (!own) return {};
  std::vector<fs::path> ours;  // from the oldest to the newest
  fs::path last_finite;  // training that has gone wrong goes on saving, and must not replace what was right
  for (const FoundCheckpoint& found : checkpoints_in(root_)) {
    if (!are_of_one_sequence(found.path.filename(), name_)) continue;
    const auto summary = summary_of(found.path);
    if (!summary || !are_of_one_training(*summary, *own) || is_of_another_that_runs(*summary)) continue;
    if (summary->finite) last_finite = found.path;
    if (holds_only_ours(found.path)) ours.push_back(found.path);
  }
  auto left = static_cast<int64_t>(ours.size()) - count;
  std::vector<fs::path> excess;
  for (const fs::path& path : ours) {
    if (left <= 0) break;
    if (path == path_ || path == last_finite) continue;
    excess.push_back(path);
    --left;
  }
  return excess;
}

}  // namespace zerosched::detail
