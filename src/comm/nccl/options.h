#pragma once

#include "comm/nccl/api.h"
#include "device/runtime.h"

namespace zerosched::detail {

/// What tests set otherwise than nccl_communicator() does. What the pointers point to outlives all
/// communicators.
struct NcclOptions {
  double timeout_seconds = 600;
  /// How often the watching thread looks at errors, at the other ranks and at the time.
  double watch_seconds = 0.05;
  const NcclApi* api = nullptr;        ///< null: nccl_api()
  device::Runtime* runtime = nullptr;  ///< null: device::cuda()
};

}  // namespace zerosched::detail
