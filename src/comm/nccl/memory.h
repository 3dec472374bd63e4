#pragma once

#include "comm/nccl/comm.h"

#include <zerosched/communicator.h>

#include <list>
#include <memory>
#include <mutex>

namespace zerosched::detail {

/// Device memory for collectives: from ncclMemAlloc and registered as a symmetric window, so that NCCL moves
/// it without copies, where library and machine can; LibTorch's ordinary memory where not.
///
/// LibTorch's allocator knows when a stream has done with a block that is freed; ncclMemFree does not. So a
/// block whose tensor is gone is retired with an event on the stream that was current then, and freed when
/// the event has passed. Collectives hold their tensors (see NcclGroup), so NCCL's own stream has done with
/// it before.
class NcclMemory : public std::enable_shared_from_this<NcclMemory> {
 public:
  NcclMemory(const NcclApi& api, device::Runtime& runtime, int device, std::shared_ptr<NcclComm> comm);
  ~NcclMemory();

  /// Collective: whether it becomes a window is agreed over `host`.
  at::Tensor allocate(
      int64_t numel, at::ScalarType dtype, Communicator& host, const NcclComm::GiveUp& give_up);

  /// Frees what has been retired and is through; returns whether any is left.
  bool reap() noexcept;

 private:
  struct Block {
    void* memory;
    void* window;
    device::Event event;
  };
  /// Memory with a window, or none if some rank cannot have one. Collective.
  Block allocate_block(size_t byte_count, Communicator& host, const NcclComm::GiveUp& give_up);
  void retire(void* memory, void* window) noexcept;
  void free_block(const Block& block) noexcept;

  const NcclApi& api_;
  device::Runtime& runtime_;
  int device_;
  std::shared_ptr<NcclComm> comm_;
  bool windows_work_;  // until one could not be registered; the same on every rank
  std::mutex mutex_;
  std::list<Block> retired_;  // under mutex_
};

}  // namespace zerosched::detail
