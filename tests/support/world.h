#pragma once

#include <zerosched/communicator.h>

#include <memory>

namespace zerosched::testing {

/// A communicator over all ranks of the test program, made by the first call of a test and the same until the
/// test ends, so that one test's failed communicator is not the next one's. Collective. Gives up after 20 s.
std::shared_ptr<Communicator> world();

/// Called by the test runner after each test. Collective.
void forget_world();

}  // namespace zerosched::testing
