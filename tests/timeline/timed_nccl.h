#pragma once

#include "comm/nccl/api.h"
#include "timeline/timed_runtime.h"

namespace zerosched::testing {

/// NCCL on a timed device: collectives take what the model says, and all ranks are there when this one is. `runtime`
/// must outlive all communicators; the table is of plain functions, so there is one at a time.
const detail::NcclApi& timed_nccl(TimedRuntime& runtime);

}  // namespace zerosched::testing
