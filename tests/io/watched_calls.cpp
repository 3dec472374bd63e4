#include "io/watched_calls.h"

#include <cstdarg>
#include <utility>

#include <dlfcn.h>
#include <fcntl.h>

namespace zerosched::testing {

namespace {

thread_local std::function<void(const std::string&)> before_open;

}  // namespace

WatchedOpens::WatchedOpens(std::function<void(const std::string& path)> before) {
  before_open = std::move(before);
}
WatchedOpens::~WatchedOpens() { before_open = nullptr; }

}  // namespace zerosched::testing

namespace {

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// The program's own definitions come before the C library's for every library that is loaded.
extern "C" __attribute__((visibility("default"))) int open(const char* path, int flags, ...) {
  using zerosched::testing::before_open;
  mode_t mode = 0;
  if ((flags & (O_CREAT | O_TMPFILE)) != 0) {
    std::va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
  }
  if (before_open) {
    // What it opens itself is not watched.
    const auto call = std::exchange(before_open, nullptr);
    call(path);
    before_open = call;
  }
  return real<int(const char*, int, ...)>("open")(path, flags, mode);
}
