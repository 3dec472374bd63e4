#pragma once

#include "device/runtime.h"

#include <zerosched/communicator.h>

#include <string>

namespace zerosched::detail {

/// The device of a rank that was given none: the one of its position on the node, counted round where there
/// are fewer. `runtime` must have devices.
int device_of_local_rank(const Communicator& communicator, device::Runtime& runtime);

/// "ranks 1 and 3 share cuda:1" if any two ranks use one device, else empty. The same on every rank.
/// Collective; a rank with `device` -1 uses none.
std::string shared_device(Communicator& communicator, device::Runtime& runtime, int device);

}  // namespace zerosched::detail
