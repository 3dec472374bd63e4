#pragma once

#include <nccl.h>

#include <cstddef>
#include <string>
#include <vector>

namespace zerosched::detail {

/// The oldest NCCL whose communicators are made by ncclCommInitRankConfig: 2.14.
inline constexpr int kOldestNcclVersion = 21400;

/// The functions of NCCL that this library calls. It is a table so that NCCL is not linked: a program that
/// has it for LibTorch gets that one, a program without GPUs needs none, and tests bring one that works
/// without GPUs.
struct NcclApi {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommFinalize) comm_finalize = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclReduceScatter) reduce_scatter = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;

  // Newer than kOldestNcclVersion: null in a library that lacks them. Spelled out, with void* for
  // ncclWindow_t, so that an older nccl.h compiles too.
  ncclResult_t (*comm_split)(
      ncclComm_t comm, int color, int key, ncclComm_t* split, ncclConfig_t* config) = nullptr;  // 2.18
  ncclResult_t (*mem_alloc)(void** memory, size_t byte_count) = nullptr;                        // 2.19
  ncclResult_t (*mem_free)(void* memory) = nullptr;                                             // 2.19
  ncclResult_t (*comm_window_register)(
      ncclComm_t comm, void* memory, size_t byte_count, void** window, int flags) = nullptr;  // 2.27
  ncclResult_t (*comm_window_deregister)(ncclComm_t comm, void* window) = nullptr;            // 2.27

  /// Whether buffers can be allocated so that other GPUs reach them at the same address.
  bool has_windows() const { return mem_alloc && mem_free && comm_window_register && comm_window_deregister; }
};

/// "2.28.9".
std::string nccl_version_text(int version);

/// Loads NCCL from the first of `libraries` that there is. Throws if there is none, or if it is too old, with
/// what to install and what to use instead.
NcclApi load_nccl(const std::vector<std::string>& libraries);

/// The NCCL of this process, loaded by the first call and for ever: the one that LibTorch has mapped, else
/// the one that came with LibTorch's wheel, else the system's. Throws as load_nccl().
const NcclApi& nccl_api();

/// Throws unless the library is at least kOldestNcclVersion.
void check_nccl_version(const NcclApi& api);

}  // namespace zerosched::detail
