#pragma once

#include "comm/nccl/api.h"
#include "device/runtime.h"

namespace zerosched::detail {

/// What tests set otherwise than nccl_communicator() does. What the pointers point to outlives all
/// communicators.
struct NcclOptions {
  double timeout_seconds = 600;
  /// What the device has to end the collectives in flight once the communicator has failed, before the process ends.
  double abort_timeout_seconds = 30;
  /// Whether allocate() gives memory in symmetric windows where it can.
  bool symmetric_memory = true;
  /// Whether the process ends then; else it is warned of.
  bool end_process = true;
  /// How often the watching thread looks at errors, at the other ranks and at the time.
  double watch_seconds = 0.05;
  const NcclApi* api = nullptr;        ///< null: nccl_api()
  device::Runtime* runtime = nullptr;  ///< null: device::cuda()
};

}  // namespace zerosched::detail
