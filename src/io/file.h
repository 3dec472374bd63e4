#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace zerosched::detail {

/// An open file. Every failure throws std::runtime_error with the path, what was being done and the system's
/// reason.
class File {
 public:
  static File open(const std::string& path);
  /// Must not exist yet. Its size is allocated at once, so that a full disk shows here.
  static File create(const std::string& path, uint64_t byte_count);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const;
  /// Exactly `byte_count` bytes; a file that is too short is an error.
  void read(void* to, size_t byte_count, uint64_t offset) const;
  void write(const void* from, size_t byte_count, uint64_t offset);
  /// Returns once the contents are on the disk.
  void sync();

 private:
  File(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  [[noreturn]] void fail(const char* doing) const;

  std::string path_;
  int descriptor_;
};

/// What is appended to the name of a file that is not finished.
inline constexpr const char* kUnfinished = ".new";

std::string read_text(const std::string& path);
/// Written beside, synced, and put in place by a rename: readers see the old text or the new.
void write_text(const std::string& path, const std::string& text);
/// `from`, which must be synced, takes the name `to`, and the folder is synced.
void replace_file(const std::string& from, const std::string& to);
/// Makes the names in a folder as durable as the files they name.
void sync_folder(const std::string& path);

}  // namespace zerosched::detail
