#pragma once

#include "device/runtime.h"

#include <zerosched/communicator.h>
#include <zerosched/session.h>

#include <functional>
#include <memory>

namespace zerosched::detail {

/// Where a rank's model lives, and what connects it to the other ranks'.
struct SessionPlacement {
  at::Device device;
  std::shared_ptr<Communicator> communicator;
};

using MakeNccl = std::function<std::shared_ptr<Communicator>(at::Device)>;

/// Decides what SessionOptions leave open, and makes the rank's GPU the calling thread's current one. Collective over `root`, the communicator that launcher or
/// loneliness gives; throws the same on every rank. `make_nccl` makes an NCCL communicator over `root`.
SessionPlacement place_session(const std::shared_ptr<Communicator>& root, const SessionOptions& options,
    device::Runtime& runtime, const MakeNccl& make_nccl);

}  // namespace zerosched::detail
