#include "comm/mpi/shared_mapping.h"

#include "base/random_id.h"

#include <cerrno>
#include <cstring>
#include <system_error>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

namespace zerosched::detail {

namespace {

constexpr int64_t kLeastForHugePages = int64_t{4} << 20;

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

}  // namespace

SharedMapping::SharedMapping(int fd, int64_t byte_count)
    : owner_(getpid()), size_(static_cast<size_t>(kHeaderBytes + byte_count)) {
  void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) fail(errno, "mmap of " + std::to_string(size_) + " bytes");
  memory_ = static_cast<char*>(memory);
  // A hint: where it is refused, ordinary pages do.
  if (byte_count >= kLeastForHugePages) madvise(data(), static_cast<size_t>(byte_count), MADV_HUGEPAGE);
}

std::shared_ptr<SharedMapping> SharedMapping::create(int64_t byte_count) {
  // Beyond this limit ftruncate ends the process by a signal.
  rlimit most{};
  if (getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur != RLIM_INFINITY &&
      static_cast<rlim_t>(kHeaderBytes + byte_count) > most.rlim_cur) {
    fail(EFBIG, "RLIMIT_FSIZE (ulimit -f)");
  }
  const int fd = memfd_create("zerosched", MFD_CLOEXEC);
  if (fd < 0) fail(errno, "memfd_create");
  SharedFile file{static_cast<int32_t>(getpid()), fd, 0};
  if (ftruncate(fd, kHeaderBytes + byte_count) != 0) {
    const int error = errno;
    ::close(fd);
    fail(error, "ftruncate of memory to share");
  }
  std::shared_ptr<SharedMapping> mapping;
  try {
    mapping.reset(new SharedMapping(fd, byte_count));
  } catch (const std::system_error&) {
    ::close(fd);
    throw;
  }
  file.mark = random_id();
  std::memcpy(mapping->memory_, &file.mark, sizeof(file.mark));
  mapping->file_ = file;
  return mapping;
}

std::shared_ptr<SharedMapping> SharedMapping::open(const SharedFile& file, int64_t byte_count) {
  const std::string path = "/proc/" + std::to_string(file.pid) + "/fd/" + std::to_string(file.fd);
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) fail(errno, "open " + path);
  struct stat found {};
  std::shared_ptr<SharedMapping> mapping;
  try {
    if (fstat(fd, &found) != 0 || found.st_size != kHeaderBytes + byte_count)
      fail(EBADF, path + " is of another process");
    mapping.reset(new SharedMapping(fd, byte_count));
  } catch (const std::system_error&) {
    ::close(fd);
    throw;
  }
  ::close(fd);
  if (std::memcmp(mapping->memory_, &file.mark, sizeof(file.mark)) != 0)
    fail(EBADF, path + " is of another process");
  return mapping;
}

void SharedMapping::close_file() {
  if (file_.fd >= 0) ::close(file_.fd);
  file_.fd = -1;
}

// A child of fork() that ends has the parent's pages in its hands.
void SharedMapping::discard(int64_t first_byte, int64_t byte_count) noexcept {
  if (getpid() != owner_) return;
  madvise(data() + first_byte, static_cast<size_t>(byte_count), MADV_REMOVE);
}

SharedMapping::~SharedMapping() {
  close_file();
  munmap(memory_, size_);
}

}  // namespace zerosched::detail
