#pragma once

#include <zerosched/communicator.h>

#include <string>

namespace zerosched::detail {

/// "reduce_scatter #17 'gradients' (bucket 3, step 12)"; parts that are not given are left out, the number
/// too where `sequence` is negative.
std::string describe(Collective kind, int64_t sequence, const CollectiveLabel& label);

}  // namespace zerosched::detail
