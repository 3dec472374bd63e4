#pragma once

#include "facts.h"
#include "network.h"

#include <zerosched/communicator.h>

#include <cstdint>
#include <vector>

namespace doctor {

/// Between rank 0's host and that of the first rank on another, while all other ranks wait. The same on every rank.
/// Collective.
Stream measure_stream(
    zerosched::Communicator& communicator, const std::vector<Facts>& facts, int64_t byte_count);

}  // namespace doctor
