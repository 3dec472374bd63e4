#include "io/latest.h"

#include "io/checkpoint_names.h"
#include "io/file.h"

#include <array>
#include <cerrno>
#include <filesystem>
#include <stdexcept>
#include <system_error>

#include <unistd.h>

namespace zerosched::detail {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kMostBytes = 4096;

// What file systems without links say: FAT; NFS and FUSE; those behind some kernels.
bool has_no_links(int error) {
  constexpr std::array<int, 5> kErrors = {EPERM, EOPNOTSUPP, ENOSYS, EINVAL, EACCES};
  for (const int each : kErrors) {
    if (error == each) return true;
  }
  return false;
}

// The one name in a file; empty if it holds anything else. Throws if it cannot be read.
std::string name_in(const fs::path& file) {
  try {
    std::string text = read_text(file, kMostBytes);
    if (text.empty() || text.back() != '\n') return {};
    text.pop_back();
    return is_checkpoint_name(text) && text.find('\n') == std::string::npos ? text : std::string();
  } catch (const std::system_error& error) {
    if (!is_absence(error.code())) throw;
  } catch (const std::runtime_error&) {
    // Too long.
  }
  return {};
}

}  // namespace

std::string read_latest(const std::string& root) {
  const fs::path latest = fs::path(root) / kLatest;
  const fs::file_type type = type_of(latest);
  if (type == fs::file_type::symlink) {
    std::error_code error;
    const fs::path target = fs::read_symlink(latest, error);
    return has_found(latest, "cannot be read", error) ? (fs::path(root) / target).string() : std::string();
  }
  if (type != fs::file_type::regular) return {};
  const std::string name = name_in(latest);
  return name.empty() ? std::string() : (fs::path(root) / name).string();
}

bool latest_is_ours(const std::string& root) {
  const fs::path latest = fs::path(root) / kLatest;
  const fs::file_type type = type_of(latest);
  if (type == fs::file_type::not_found || type == fs::file_type::symlink) return true;
  return type == fs::file_type::regular && !name_in(latest).empty();
}

void prepare_latest(const std::string& root, const std::string& name) {
  const std::string path = fs::path(root) / kNewLatest;
  if (::symlink(name.c_str(), path.c_str()) == 0) return;
  if (!has_no_links(errno)) fail_with_reason(path, "the link cannot be made", errno);
  NewFile file(path, 0);
  const std::string text = name + '\n';
  file.write(text.data(), text.size(), 0);
  file.finish();
}

void publish_latest(const std::string& root) {
  rename_entry(fs::path(root) / kNewLatest, fs::path(root) / kLatest);
}

}  // namespace zerosched::detail
