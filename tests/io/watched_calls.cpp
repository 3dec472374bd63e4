#include "io/watched_calls.h"

#include <array>
#include <cerrno>
#include <cstdarg>
#include <utility>

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

namespace zerosched::testing {

namespace {

thread_local std::function<int(const std::string&, const std::string&)> before_call;

}  // namespace

WatchedCalls::WatchedCalls(std::function<int(const std::string& call, const std::string& path)> before) {
  before_call = std::move(before);
}
WatchedCalls::~WatchedCalls() { before_call = nullptr; }

}  // namespace zerosched::testing

namespace {

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// Whether the call is to fail, with errno.
bool fails(const char* call, const std::string& path) {
  using zerosched::testing::before_call;
  if (!before_call) return false;
  const auto before = std::exchange(before_call, nullptr);  // what it calls itself is not watched
  const int error = before(call, path);
  before_call = before;
  errno = error;
  return error != 0;
}

std::string path_of(int file) {
  std::array<char, 4096> path{};
  const ssize_t length =
      ::readlink(("/proc/self/fd/" + std::to_string(file)).c_str(), path.data(), path.size());
  return {path.data(), length > 0 ? static_cast<size_t>(length) : 0};
}

}  // namespace

// The program's own definitions come before the C library's for every library that is loaded.
extern "C" __attribute__((visibility("default"))) int open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if ((flags & (O_CREAT | O_TMPFILE)) != 0) {
    std::va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
  }
  if (fails("open", path)) return -1;
  return real<int(const char*, int, ...)>("open")(path, flags, mode);
}

extern "C" __attribute__((visibility("default"))) int fsync(int file) {
  if (fails("fsync", path_of(file))) return -1;
  return real<int(int)>("fsync")(file);
}

extern "C" __attribute__((visibility("default"))) int renameat2(
    int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  if (fails("renameat2", from)) return -1;
  return real<int(int, const char*, int, const char*, unsigned)>("renameat2")(
      from_folder, from, to_folder, to, flags);
}
