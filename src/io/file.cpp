#include "io/file.h"

#include <cerrno>
#include <cstdio>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace zerosched::detail {

namespace {

[[noreturn]] void fail(const std::string& path, const char* doing, int error) {
  throw std::runtime_error(path + ": " + doing + ": " + std::generic_category().message(error));
}

int open_or_fail(const std::string& path, int flags, const char* doing) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (descriptor < 0) fail(path, doing, errno);
  return descriptor;
}

}  // namespace

File File::open(const std::string& path) { return File(path, open_or_fail(path, O_RDONLY, "cannot open")); }

File File::create(const std::string& path, uint64_t byte_count) {
  File file(path, open_or_fail(path, O_RDWR | O_CREAT | O_EXCL, "cannot create"));
  if (byte_count > 0) {
    const int error = ::posix_fallocate(file.descriptor_, 0, static_cast<off_t>(byte_count));
    // File systems that cannot allocate ahead find out while writing.
    if (error != 0 && error != EOPNOTSUPP && error != EINVAL) {
      zerosched::detail::fail(path, "cannot allocate its bytes", error);
    }
  }
  return file;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

void File::fail(const char* doing) const { zerosched::detail::fail(path_, doing, errno); }

uint64_t File::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fail("cannot be examined");
  return static_cast<uint64_t>(status.st_size);
}

void File::read(void* to, size_t byte_count, uint64_t offset) const {
  auto* at = static_cast<char*>(to);
  while (byte_count > 0) {
    const ssize_t count = ::pread(descriptor_, at, byte_count, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot be read");
    if (count == 0)
      throw std::runtime_error(path_ + ": is too short; it ends at byte " + std::to_string(offset));
    at += count;
    offset += static_cast<uint64_t>(count);
    byte_count -= static_cast<size_t>(count);
  }
}

void File::write(const void* from, size_t byte_count, uint64_t offset) {
  const auto* at = static_cast<const char*>(from);
  while (byte_count > 0) {
    const ssize_t count = ::pwrite(descriptor_, at, byte_count, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot be written");
    at += count;
    offset += static_cast<uint64_t>(count);
    byte_count -= static_cast<size_t>(count);
  }
}

void File::sync() {
  if (::fsync(descriptor_) != 0) fail("cannot be synced to the disk");
}

std::string read_text(const std::string& path) {
  const File file = File::open(path);
  std::string text(file.size(), '\0');
  file.read(text.data(), text.size(), 0);
  return text;
}

void write_text(const std::string& path, const std::string& text) {
  const std::string beside = path + kUnfinished;
  std::remove(beside.c_str());  // of a process that was killed here
  {
    File file = File::create(beside, 0);
    file.write(text.data(), text.size(), 0);
    file.sync();
  }
  replace_file(beside, path);
}

void replace_file(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) fail(to, "cannot be put in place", errno);
  const size_t slash = to.rfind('/');
  sync_folder(slash == std::string::npos ? "." : slash == 0 ? "/" : to.substr(0, slash));
}

void sync_folder(const std::string& path) {
  const int descriptor = open_or_fail(path, O_RDONLY | O_DIRECTORY, "cannot open the folder");
  const int result = ::fsync(descriptor);
  const int error = errno;
  ::close(descriptor);
  // Some network file systems cannot sync folders, and keep names safe by themselves.
  if (result != 0 && error != EINVAL) fail(path, "the folder cannot be synced", error);
}

}  // namespace zerosched::detail
