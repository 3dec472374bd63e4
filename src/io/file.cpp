#include "io/file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <stdexcept>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace zerosched::detail {

namespace {

// Until it is not a signal that ends the call.
template <typename Call>
auto uninterrupted(Call&& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

Descriptor open_or_fail(const std::string& path, int flags, const char* doing) {
  const int number = uninterrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC, 0666); });
  if (number < 0) fail_with_reason(path, doing, errno);
  return Descriptor(number);
}

struct stat examine(const std::string& path, const Descriptor& descriptor) {
  struct stat status {};
  if (::fstat(descriptor.number(), &status) != 0) fail_with_reason(path, "cannot be examined", errno);
  return status;
}

void check_length(const std::string& path, uint64_t byte_count, uint64_t most_bytes) {
  if (byte_count <= most_bytes) return;
  throw std::runtime_error(path + ": has " + std::to_string(byte_count) + " bytes; expected at most " +
                           std::to_string(most_bytes));
}

}  // namespace

void fail_with_reason(const std::string& path, const char* doing, int error) {
  throw std::system_error(error, std::generic_category(), path + ": " + doing);
}

bool is_absence(const std::error_code& error) {
  return error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory ||
         error.value() == ESTALE;
}

bool has_found(const std::string& path, const char* doing, const std::error_code& error) {
  if (error && !is_absence(error)) fail_with_reason(path, doing, error.value());
  return !error;
}

// Not again after EINTR: Linux has closed it by then.
bool Descriptor::close() noexcept {
  if (number_ < 0) return true;
  return ::close(std::exchange(number_, -1)) == 0 || errno == EINTR;
}

// O_NONBLOCK is for pipes, which have no writer.
File File::open(const std::string& path) {
  File file(path, open_or_fail(path, O_RDONLY | O_NONBLOCK, "cannot open"));
  if (!S_ISREG(examine(path, file.descriptor_).st_mode)) {
    throw std::runtime_error(path + ": is not a regular file");
  }
  return file;
}

uint64_t File::size() const { return static_cast<uint64_t>(examine(path_, descriptor_).st_size); }

void File::read(void* to, size_t byte_count, uint64_t offset) const {
  auto* at = static_cast<char*>(to);
  while (byte_count > 0) {
    const ssize_t count = uninterrupted(
        [&] { return ::pread(descriptor_.number(), at, byte_count, static_cast<off_t>(offset)); });
    if (count < 0) fail_with_reason(path_, "cannot be read", errno);
    if (count == 0)
      throw std::runtime_error(path_ + ": is too short; it ends at byte " + std::to_string(offset));
    at += count;
    offset += static_cast<uint64_t>(count);
    byte_count -= static_cast<size_t>(count);
  }
}

std::string File::read_head(uint64_t most_bytes) const {
  std::string head(std::min(size(), most_bytes), '\0');
  read(head.data(), head.size(), 0);
  return head;
}

NewFile::NewFile(const std::string& path, uint64_t byte_count)
    : path_(path), descriptor_(open_or_fail(path, O_RDWR | O_CREAT | O_EXCL, "cannot create")) {
  const struct stat status = examine(path_, descriptor_);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  if (byte_count == 0) return;
  // Not posix_fallocate, which writes a byte to every block where the file system cannot allocate: what is written then
  // finds out by itself whether there is room.
  const int result =
      uninterrupted([&] { return ::fallocate(descriptor_.number(), 0, 0, static_cast<off_t>(byte_count)); });
  if (result == 0 || errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL) return;
  const int error = errno;
  ::unlink(path_.c_str());
  fail_with_reason(path_, "cannot allocate its bytes", error);
}

NewFile::~NewFile() {
  if (finished_) return;
  struct stat named {};
  const bool is_own =
      ::lstat(path_.c_str(), &named) == 0 && named.st_dev == device_ && named.st_ino == inode_;
  descriptor_.close();  // first: of an open file NFS keeps the contents under another name
  if (is_own) ::unlink(path_.c_str());
}

void NewFile::write(const void* from, size_t byte_count, uint64_t offset) {
  const auto* at = static_cast<const char*>(from);
  while (byte_count > 0) {
    const ssize_t count = uninterrupted(
        [&] { return ::pwrite(descriptor_.number(), at, byte_count, static_cast<off_t>(offset)); });
    if (count <= 0) fail_with_reason(path_, "cannot be written", count == 0 ? EIO : errno);
    at += count;
    offset += static_cast<uint64_t>(count);
    byte_count -= static_cast<size_t>(count);
  }
}

void NewFile::sync_and_close() {
  if (uninterrupted([&] { return ::fsync(descriptor_.number()); }) != 0) {
    fail_with_reason(path_, "cannot be synced to the disk", errno);
  }
  if (!descriptor_.close()) fail_with_reason(path_, "cannot be closed", errno);
}

void NewFile::finish() {
  sync_and_close();
  finished_ = true;
}

void NewFile::finish_as(const std::string& to) {
  sync_and_close();
  rename_entry(path_, to);
  finished_ = true;
}

std::string read_text(const std::string& path, uint64_t most_bytes) {
  const File file = File::open(path);
  check_length(path, file.size(), most_bytes);
  return file.read_head(most_bytes);
}

void write_text(const std::string& path, const std::string& text) {
  check_length(path, text.size(), kMostTextBytes);
  const std::string beside = path + kUnfinished;
  std::remove(beside.c_str());  // of a process that was killed here
  NewFile file(beside, 0);
  file.write(text.data(), text.size(), 0);
  file.finish_as(path);
  sync_folder(folder_of(path));
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

void sync_folder(const std::string& path) {
  const Descriptor folder = open_or_fail(path, O_RDONLY | O_DIRECTORY, "cannot open the folder");
  // Some network file systems cannot sync folders, and keep names safe by themselves.
  if (uninterrupted([&] { return ::fsync(folder.number()); }) != 0 && errno != EINVAL) {
    fail_with_reason(path, "the folder cannot be synced", errno);
  }
}

void make_folders(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) return;
  const std::string above = folder_of(path);
  if (above != path && !path.empty()) make_folders(above);
  if (::mkdir(path.c_str(), 0777) != 0 &&
      (errno != EEXIST || ::stat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode))) {
    fail_with_reason(path, "the folder cannot be made", errno);
  }
  sync_folder(above);
}

std::filesystem::file_type type_of(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::symlink_status(path, error);
  return has_found(path, "cannot be examined", error) ? status.type() : std::filesystem::file_type::not_found;
}

void rename_entry(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) fail_with_reason(to, "cannot be put in place", errno);
}

}  // namespace zerosched::detail
