#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

// Files and folders by the calls of the system. Every failure is a std::runtime_error with the path, what was being done
// and the system's reason, and a std::system_error where a call has failed. What a signal interrupts is done again.
namespace zerosched::detail {

/// An open descriptor, closed at the end.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;

  int number() const { return number_; }
  /// False, with errno, where the system only says now that earlier writes have failed.
  bool close() noexcept;

 private:
  int number_;
};

/// A regular file that is read. A pipe or a device of the same name is an error, and never blocks.
class File {
 public:
  static File open(const std::string& path);

  const std::string& path() const { return path_; }
  uint64_t size() const;
  /// Exactly `byte_count` bytes; a file that is too short is an error.
  void read(void* to, size_t byte_count, uint64_t offset) const;
  /// Its first `most_bytes`, or all of it.
  std::string read_head(uint64_t most_bytes) const;

 private:
  File(std::string path, Descriptor descriptor)
      : path_(std::move(path)), descriptor_(std::move(descriptor)) {}

  std::string path_;
  Descriptor descriptor_;
};

/// A file that is made. Unless finish() succeeds, it is removed at the end: a disk that is full gets its space back. But not
/// what another process has made under its name meanwhile.
class NewFile {
 public:
  /// Must not exist yet. Its size is allocated at once, so that a full disk shows here, where the file system can.
  NewFile(const std::string& path, uint64_t byte_count);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  const std::string& path() const { return path_; }
  void write(const void* from, size_t byte_count, uint64_t offset);
  /// Returns once the contents are on the disk. The name is only once its folder is synced.
  void finish();
  /// The same, and the file takes the name `to`, in place of what had it.
  void finish_as(const std::string& to);

 private:
  void sync_and_close();

  std::string path_;
  Descriptor descriptor_;
  uint64_t device_ = 0, inode_ = 0;  ///< which file it is, whatever its name
  bool finished_ = false;
};

/// What is appended to the name of a text that is not finished.
inline constexpr const char* kUnfinished = ".new";

/// What write_text() writes and read_text() reads.
inline constexpr uint64_t kMostTextBytes = uint64_t{1} << 30;

/// A text of at most `most_bytes`; a longer one is an error.
std::string read_text(const std::string& path, uint64_t most_bytes = kMostTextBytes);
/// Written beside, synced, and put in place by a rename: readers see the old text or the new.
void write_text(const std::string& path, const std::string& text);

/// The folder that `path` is in; "." if it has no slash.
std::string folder_of(const std::string& path);
/// Makes the names in a folder as durable as the files they name.
void sync_folder(const std::string& path);
/// Makes a folder and what is above it, all of it durable.
void make_folders(const std::string& path);
/// What is there, links not followed. Throws if that cannot be known.
std::filesystem::file_type type_of(const std::string& path);
/// Throws if `to` is a folder that is not empty.
void rename_entry(const std::string& from, const std::string& to);

/// Throws a std::system_error, "PATH: DOING: the reason of `error`".
[[noreturn]] void fail_with_reason(const std::string& path, const char* doing, int error);
/// Whether the reason is that nothing is there, or no more: a network file system may say so late (ESTALE).
bool is_absence(const std::error_code& error);

/// Whether a call that says `error` has found something; not if nothing is there. Throws, as above, if it says anything else.
bool has_found(const std::string& path, const char* doing, const std::error_code& error);

/// What `look` finds; nothing where this user may not look, as it is another's and does not concern him.
template <typename Look>
auto if_permitted(Look&& look) -> std::optional<decltype(look())> {
  try {
    return look();
  } catch (const std::system_error& error) {
    if (error.code() != std::errc::permission_denied) throw;
    return std::nullopt;
  }
}

}  // namespace zerosched::detail
