#pragma once

namespace zerosched::testing {

/// How a test program joins MPI.
enum class ThreadLevel { funneled, serialized, multiple };

/// Joins MPI, runs all tests on all ranks and leaves MPI. Only rank 0 prints; a failure of another rank is a
/// failure of the same test on rank 0, with the other rank's text. Returns the exit code, the same on every
/// rank: 1 if a test failed on any rank, else kSkipped (support/skips.h) if any rank skipped one, else 0.
int run_all_tests(int argc, char** argv, ThreadLevel level);

}  // namespace zerosched::testing
