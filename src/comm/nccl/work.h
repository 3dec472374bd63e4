#pragma once

#include "comm/nccl/memory.h"
#include "device/runtime.h"

#include <zerosched/communicator.h>

#include <atomic>
#include <memory>

namespace zerosched::detail {

class NcclGroup;

/// One collective on NCCL's stream, known by the event after it.
class NcclWork final : public Work {
 public:
  /// A `host_waits` work is a barrier's: its wait() is for the host. `blocks`: of its tensors.
  NcclWork(std::shared_ptr<NcclGroup> group, bool host_waits, NcclMemory::Blocks blocks);
  ~NcclWork() override;

  void wait() override;
  bool done() const noexcept override;
  bool blocks_host() const noexcept override { return host_waits_; }

  /// Called once NCCL's kernels are on `stream`.
  void record(device::Stream stream);
  /// Whether the device is through with it. Throws what the device has to say.
  bool passed() const;

 private:
  std::shared_ptr<NcclGroup> group_;
  bool host_waits_;
  NcclMemory::Blocks blocks_;
  std::atomic<bool> recorded_{false};
  device::Event event_;
};

}  // namespace zerosched::detail
