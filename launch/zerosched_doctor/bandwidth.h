#pragma once

#include "network.h"

#include <zerosched/communicator.h>

#include <cstdint>
#include <vector>

namespace doctor {

/// Times reduce-scatter and all-gather, and throws if a sum is wrong. Collective.
std::vector<Bandwidth> measure_bandwidth(
    zerosched::Communicator& communicator, at::Device device, int64_t mib);

}  // namespace doctor
