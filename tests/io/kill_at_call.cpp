#include "io/kill_at_call.h"

#include <atomic>
#include <csignal>
#include <cstdio>

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace zerosched::testing {

namespace {

std::atomic<int64_t> calls_left{0};

// Whether this is the call to die at.
bool is_last_call() { return calls_left.load() > 0 && calls_left.fetch_sub(1) == 1; }

void count() {
  if (is_last_call()) std::raise(SIGKILL);
}

}  // namespace

void kill_at_call(int64_t n) { calls_left = n; }

}  // namespace zerosched::testing

namespace {

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// The program's own definitions come before the C library's for every library that is loaded.
#define ZEROSCHED_COUNTED(name, parameters, arguments, specifier)                   \
  extern "C" __attribute__((visibility("default"))) int name parameters specifier { \
    zerosched::testing::count();                                                    \
    return real<int parameters>(#name) arguments;                                   \
  }

ZEROSCHED_COUNTED(fsync, (int file), (file), /* none */)
ZEROSCHED_COUNTED(
    fallocate, (int file, int mode, off_t offset, off_t length), (file, mode, offset, length), /* none */)
ZEROSCHED_COUNTED(mkdir, (const char* path, mode_t mode), (path, mode), noexcept)
ZEROSCHED_COUNTED(rmdir, (const char* path), (path), noexcept)
ZEROSCHED_COUNTED(unlink, (const char* path), (path), noexcept)
ZEROSCHED_COUNTED(remove, (const char* path), (path), noexcept)
ZEROSCHED_COUNTED(rename, (const char* from, const char* to), (from, to), noexcept)
ZEROSCHED_COUNTED(renameat2,
    (int from_folder, const char* from, int to_folder, const char* to, unsigned flags),
    (from_folder, from, to_folder, to, flags), noexcept)
ZEROSCHED_COUNTED(symlink, (const char* target, const char* path), (target, path), noexcept)

extern "C" __attribute__((visibility("default"))) ssize_t pwrite(
    int file, const void* from, size_t bytes, off_t offset) {
  const auto write = real<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  if (zerosched::testing::is_last_call()) {
    static_cast<void>(write(file, from, bytes / 2, offset));
    std::raise(SIGKILL);
  }
  return write(file, from, bytes, offset);
}
