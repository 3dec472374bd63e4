#pragma once

#include <cstdint>

namespace zerosched::testing {

/// From now on the process kills itself (SIGKILL) at its n-th call that changes the file system: before the
/// call, or, if it writes, when half is written. 0: it does not. A program that links this has the C
/// library's functions for such calls replaced by ones that count.
void kill_at_call(int64_t n);

}  // namespace zerosched::testing
