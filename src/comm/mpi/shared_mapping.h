#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace zerosched::detail {

/// How a process names memory to others on its host: plain data, to be sent.
struct SharedFile {
  int32_t pid = 0;
  int32_t fd = -1;
  uint64_t mark = 0;  ///< at its beginning, because numbers of processes mean others in another container
};

/// Zeroed memory that the processes of a host share. It has no name in any file system, so nothing is left behind
/// however they end, and a container's small /dev/shm is no limit.
class SharedMapping {
 public:
  ~SharedMapping();
  SharedMapping(const SharedMapping&) = delete;
  SharedMapping& operator=(const SharedMapping&) = delete;

  /// Both throw std::system_error, which says what was tried.
  static std::shared_ptr<SharedMapping> create(int64_t byte_count);
  static std::shared_ptr<SharedMapping> open(const SharedFile& file, int64_t byte_count);

  char* data() const { return memory_ + kHeaderBytes; }
  /// Of a mapping that was created, until close_file().
  const SharedFile& file() const { return file_; }
  /// Once all have opened it.
  void close_file();
  /// Gives the pages of a part back that nobody uses any more, for all. Never throws.
  void discard(int64_t first_byte, int64_t byte_count) noexcept;

 private:
  // Room for the mark, and data that is aligned for huge pages.
  static constexpr int64_t kHeaderBytes = int64_t{2} << 20;
  SharedMapping(int fd, int64_t byte_count);

  SharedFile file_;
  int owner_;  // the process
  char* memory_ = nullptr;
  size_t size_ = 0;
};

}  // namespace zerosched::detail
