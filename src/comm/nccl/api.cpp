#include "comm/nccl/api.h"

#include "base/check.h"
#include "comm/nccl/alternative.h"

#include <dlfcn.h>

namespace zerosched::detail {

namespace {

constexpr const char* kSoname = "libnccl.so.2";

// Where a wheel of LibTorch keeps its NCCL: <site-packages>/nvidia/nccl/lib beside <site-packages>/torch/lib.
std::string library_of_wheel() {
  Dl_info info{};
  const void* in_libc10 = reinterpret_cast<const void*>(&c10::GetExceptionString);
  if (dladdr(in_libc10, &info) == 0 || info.dli_fname == nullptr) return {};
  const std::string c10 = info.dli_fname;
  return c10.substr(0, c10.rfind('/') + 1) + "../../nvidia/nccl/lib/" + kSoname;
}

template <typename Function>
void resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

template <typename Function>
void require(void* library, const char* name, Function& function) {
  resolve(library, name, function);
  ZEROSCHED_CHECK(function != nullptr, "nccl: the NCCL that was found has no ", name, "; install NCCL ",
      nccl_version_text(kOldestNcclVersion), " or newer; or without NCCL: ", kHostStagedAlternative);
}

}  // namespace

std::string nccl_version_text(int version) {
  // Before 2.9 the code was major * 1000 + minor * 100 + patch.
  const int major = version < 10000 ? version / 1000 : version / 10000;
  const int minor = version < 10000 ? version % 1000 / 100 : version % 10000 / 100;
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(version % 100);
}

void check_nccl_version(const NcclApi& api) {
  int version = 0;
  const ncclResult_t result = api.get_version(&version);
  ZEROSCHED_CHECK(result == ncclSuccess, "nccl: ncclGetVersion failed: ", api.get_error_string(result));
  ZEROSCHED_CHECK(version >= kOldestNcclVersion, "nccl: NCCL ", nccl_version_text(version),
      " is too old; install NCCL ", nccl_version_text(kOldestNcclVersion),
      " or newer; or without NCCL: ", kHostStagedAlternative);
}

NcclApi load_nccl(const std::vector<std::string>& libraries) {
  void* library = nullptr;
  std::string reasons;
  for (const auto& name : libraries) {
    library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    const char* reason = dlerror();
    reasons += std::string(reasons.empty() ? "" : "; ") + (reason == nullptr ? name : reason);
  }
  ZEROSCHED_CHECK(library != nullptr, "nccl: NCCL was not found (", reasons,
      "); install it (the wheel nvidia-nccl-cu13, or the "
      "package libnccl2) and name its folder in LD_LIBRARY_PATH; or without NCCL: ",
      kHostStagedAlternative);
  NcclApi api;
  require(library, "ncclGetVersion", api.get_version);
  require(library, "ncclGetErrorString", api.get_error_string);
  check_nccl_version(api);
  require(library, "ncclGetUniqueId", api.get_unique_id);
  require(library, "ncclGetLastError", api.get_last_error);
  require(library, "ncclCommInitRankConfig", api.comm_init_rank_config);
  require(library, "ncclCommFinalize", api.comm_finalize);
  require(library, "ncclCommDestroy", api.comm_destroy);
  require(library, "ncclCommAbort", api.comm_abort);
  require(library, "ncclCommGetAsyncError", api.comm_get_async_error);
  require(library, "ncclReduceScatter", api.reduce_scatter);
  require(library, "ncclAllGather", api.all_gather);
  require(library, "ncclAllReduce", api.all_reduce);
  require(library, "ncclBroadcast", api.broadcast);
  resolve(library, "ncclCommSplit", api.comm_split);
  resolve(library, "ncclMemAlloc", api.mem_alloc);
  resolve(library, "ncclMemFree", api.mem_free);
  resolve(library, "ncclCommWindowRegister", api.comm_window_register);
  resolve(library, "ncclCommWindowDeregister", api.comm_window_deregister);
  return api;
}

const NcclApi& nccl_api() {
  static const NcclApi* api = [] {
    // By its soname, dlopen finds what is mapped already before it looks at the disk.
    std::vector<std::string> libraries;
    if (void* mapped = dlopen(kSoname, RTLD_NOW | RTLD_NOLOAD); mapped != nullptr) {
      libraries = {kSoname};
    } else {
      libraries = {library_of_wheel(), kSoname};
    }
    return new NcclApi(load_nccl(libraries));
  }();
  return *api;
}

}  // namespace zerosched::detail
