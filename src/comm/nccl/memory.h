#pragma once

#include "comm/nccl/blocking_call.h"
#include "comm/nccl/comm.h"
#include "device/event_pool.h"

#include <zerosched/communicator.h>

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace zerosched::detail {

/// Device memory for collectives: from ncclMemAlloc and registered as a symmetric window, so that NCCL moves
/// it without copies, where library and machine can; LibTorch's ordinary memory where not.
///
/// LibTorch's allocator knows when the streams have done with a block that is freed; ncclMemFree does not, and unmaps
/// it under their feet. So a block remembers the streams that it was made in, that launched collectives with it and
/// that waited for those, as each reads and writes it besides. Once its tensor is gone it is retired with an event on
/// each of them and on the stream of whoever dropped the tensor, and freed when all have passed. Collectives hold their
/// tensors (see NcclGroup), so NCCL's own stream has done with it before.
class NcclMemory : public std::enable_shared_from_this<NcclMemory> {
 public:
  struct Block;
  using Blocks = std::vector<std::shared_ptr<Block>>;

  NcclMemory(const NcclApi& api, device::Runtime& runtime, int device, std::shared_ptr<NcclComm> comm,
      bool symmetric_memory);
  ~NcclMemory();

  /// Collective: whether it becomes a window is agreed over `host`.
  at::Tensor allocate(
      int64_t numel, at::ScalarType dtype, Communicator& host, const NcclComm::GiveUp& give_up);

  /// Of the memory of `tensors`, what is not LibTorch's.
  Blocks blocks_of(const std::vector<at::Tensor>& tensors) const;
  void used_in(const Blocks& blocks, device::Stream stream);

  /// Has what was retired and is through freed; returns whether any is left. Never blocks.
  bool reap() noexcept;
  /// Whether some is being freed now.
  bool is_freeing() const;

 private:
  void* allocate_on_device(size_t byte_count, int rank);
  /// Memory with a window, or null if some rank cannot have one. Collective.
  std::shared_ptr<Block> allocate_block(
      size_t byte_count, Communicator& host, const NcclComm::GiveUp& give_up);
  void retire(const std::shared_ptr<Block>& block) noexcept;
  void free_block(const Block& block) noexcept;

  const NcclApi& api_;
  device::Runtime& runtime_;
  int device_;
  std::shared_ptr<NcclComm> comm_;
  bool windows_work_;  // until one could not be registered; the same on every rank once allocate() was called
  device::EventPool events_;
  mutable std::mutex mutex_;
  std::map<const char*, std::shared_ptr<Block>> live_;  // under mutex_, by the first byte
  std::list<std::shared_ptr<Block>> retired_;           // under mutex_
  std::optional<BlockingCall> freeing_;                 // under mutex_
};

}  // namespace zerosched::detail
