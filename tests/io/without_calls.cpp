// Preloaded: calls that some file systems lack fail as they do there. ZEROSCHED_TEST_WITHOUT names them, "renameat2,symlink".
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <dlfcn.h>

namespace {

bool is_missing(const char* call) {
  const char* missing = std::getenv("ZEROSCHED_TEST_WITHOUT");
  return missing != nullptr && std::strstr(missing, call) != nullptr;
}

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

int fail_with(int error) {
  errno = error;
  return -1;
}

}  // namespace

#define ZEROSCHED_EXPORTED extern "C" __attribute__((visibility("default")))

// As NFS says it.
ZEROSCHED_EXPORTED int renameat2(
    int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  if (is_missing("renameat2")) return fail_with(EINVAL);
  return real<int(int, const char*, int, const char*, unsigned)>("renameat2")(
      from_folder, from, to_folder, to, flags);
}

// As FAT says it.
ZEROSCHED_EXPORTED int symlink(const char* target, const char* path) noexcept {
  if (is_missing("symlink")) return fail_with(EPERM);
  return real<int(const char*, const char*)>("symlink")(target, path);
}

ZEROSCHED_EXPORTED int fallocate(int file, int mode, off_t offset, off_t length) {
  if (is_missing("fallocate")) return fail_with(EOPNOTSUPP);
  return real<int(int, int, off_t, off_t)>("fallocate")(file, mode, offset, length);
}
