#include "io/checkpoint_list.h"

#include "io/checkpoint_names.h"
#include "io/file.h"
#include "io/latest.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <system_error>
#include <tuple>

namespace zerosched::detail {

namespace fs = std::filesystem;

namespace {

// Throws if that cannot be known.
bool has_manifest(const fs::path& folder) {
  std::error_code error;
  const auto status = fs::status(folder / kManifestName, error);
  return has_found(folder / kManifestName, "cannot be examined", error) && fs::is_regular_file(status);
}

// Folders that keep everybody out are passed over, as others than checkpoints may be there: lost+found.
bool may_be_checkpoint(const fs::path& folder) {
  return if_permitted([&] { return has_manifest(folder); }).value_or(false);
}

// Nothing if there is none, or no regular file of a bearable size. Throws if it cannot be read.
template <typename Read>
auto read_if_there(Read&& read) -> std::optional<decltype(read())> {
  try {
    return read();
  } catch (const std::system_error& error) {
    if (!is_absence(error.code())) throw;
  } catch (const std::runtime_error&) {
    // A pipe, or it has been cut short.
  }
  return std::nullopt;
}

// 0 if it does not say: then the checkpoint is the oldest.
int64_t created_of(const fs::path& folder) {
  const auto head =
      read_if_there([&] { return File::open(folder / kManifestName).read_head(kManifestHeadBytes); });
  const std::string member = "\"created\":";
  const size_t at = head ? head->find(member) : std::string::npos;
  return at == std::string::npos ? 0 : std::strtoll(head->c_str() + at + member.size(), nullptr, 10);
}

// What a path names in the end, there or not: by links, of which `latest` may be a file.
fs::path behind_links(fs::path path) {
  constexpr int kMostLinks = 40;  // as the system follows
  std::error_code error;
  for (int links = 0; links < kMostLinks; ++links) {
    const fs::path root = path.has_parent_path() ? path.parent_path() : fs::path(".");
    const fs::file_type type = type_of(path);
    if (type == fs::file_type::symlink) {
      const fs::path target = fs::read_symlink(path, error);
      if (error) return path;
      path = path.parent_path() / target;
    } else if (path.filename() == kLatest && type == fs::file_type::regular) {
      const std::string named = read_latest(root);
      return named.empty() ? path : fs::path(named);
    } else {
      break;
    }
  }
  return path;
}

// Whether a checkpoint may take this name: nothing has it, or an empty folder, which people make to save into.
bool is_free(const fs::path& path) {
  const fs::file_type type = type_of(path);
  if (type == fs::file_type::not_found) return true;
  std::error_code error;
  const bool is_free = type == fs::file_type::directory && fs::is_empty(path, error);
  if (error == std::errc::permission_denied) return false;
  return !has_found(path, "cannot be examined", error) || is_free;
}

// The checkpoint that a folder's entry is, or is to become; empty if it is none.
std::string checkpoint_called(const fs::path& root, const std::string& entry) {
  if (is_checkpoint_name(entry)) return entry;
  for (const char* suffix : {kPartial, kReplaced}) {
    const auto name = name_behind(entry, suffix);
    if (name && waiting_under_hidden_name(root, *name) == root / entry) return *name;
  }
  return {};
}

}  // namespace

std::optional<CheckpointSummary> summary_of(const fs::path& path) {
  const auto text = read_if_there([&] { return read_text(path / kManifestName); });
  if (!text) return std::nullopt;
  CheckpointSummary summary;
  try {
    summary = parse_summary(*text);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  for (size_t part = 0; part < summary.parts(); ++part) {
    if (!has_manifest(path / part_name(part))) return std::nullopt;
  }
  return summary;
}

std::vector<FoundCheckpoint> checkpoints_in(const fs::path& root) {
  std::vector<FoundCheckpoint> found;
  std::error_code error;
  for (fs::directory_iterator entry(root, error), end; !error && entry != end; entry.increment(error)) {
    if (type_of(entry->path()) != fs::file_type::directory || !may_be_checkpoint(entry->path())) continue;
    if (checkpoint_called(root, entry->path().filename()).empty()) continue;
    found.push_back({created_of(entry->path()), entry->path()});
  }
  has_found(root, "the folder cannot be read", error);
  std::sort(found.begin(), found.end(), [](const FoundCheckpoint& a, const FoundCheckpoint& b) {
    return std::tie(a.created, a.path) < std::tie(b.created, b.path);
  });
  return found;
}

fs::path waiting_under_hidden_name(const fs::path& root, const std::string& name) {
  if (!is_free(root / name)) return {};
  // The first is the newer of the two.
  for (const char* suffix : {kPartial, kReplaced}) {
    fs::path hidden = root / hidden_name(name, suffix);
    if (type_of(hidden) == fs::file_type::directory && summary_of(hidden)) return hidden;
  }
  return {};
}

std::string resolve_checkpoint(const std::string& path) {
  fs::path whole = path;
  if (!whole.has_filename()) whole = whole.parent_path();  // "step_01000/"
  whole = behind_links(whole);
  if (has_manifest(whole)) return whole;
  const fs::path root = whole.has_parent_path() ? whole.parent_path() : fs::path(".");
  // It may have got its name since it was found.
  for (const char* suffix : {kPartial, kReplaced}) {
    const auto name = name_behind(whole.filename(), suffix);
    if (name && has_manifest(root / *name)) return root / *name;
  }
  const fs::path hidden = waiting_under_hidden_name(root, whole.filename());
  return hidden.empty() ? whole : hidden;
}

std::string newest_checkpoint(const std::string& root) {
  const std::vector<FoundCheckpoint> found = checkpoints_in(root);
  for (auto checkpoint = found.rbegin(); checkpoint != found.rend(); ++checkpoint) {
    if (summary_of(checkpoint->path)) return checkpoint->path;
  }
  // A link may lead out of the folder.
  const std::string named = read_latest(root);
  return !named.empty() && summary_of(named) ? named : std::string();
}

}  // namespace zerosched::detail
