#pragma once

#include <algorithm>
#include <chrono>

// Every time of the protocol by which ranks learn of each other's failures, but SessionOptions::timeout and abort_timeout,
// which users set. src/comm/README.md tells what they are for. In seconds of running_now(), which a suspended job does not count.
namespace zerosched::detail::deadlines {

using Seconds = std::chrono::duration<double>;

/// What a rank has for an answer to a question: its background thread looks every 50 ms, if it gets a core. Of a short
/// timeout no more than half, so that a verdict comes within twice the timeout.
inline Seconds answer(double timeout) { return Seconds(std::min(2.0, timeout / 2)); }
/// What the lowest rank that answers has besides, to decide and tell; then each decides for itself.
inline Seconds verdict(double timeout) { return answer(timeout) * 1.5 + Seconds(0.5); }
/// At most, whatever the timeout.
inline constexpr Seconds kLongestVerdict{3.5};

/// What a rank that starts leaves the verdict to arrive in, before its caller may end the process.
inline constexpr Seconds kToldAtStart{0.5};
/// What joining takes at most beyond the timeout: the verdict, its way, and nothing else.
inline constexpr Seconds kJoin = kLongestVerdict + kToldAtStart;

/// An error of MPI's may be that of a rank in another collective, which headers will tell better by then.
inline constexpr Seconds kHeaders{1};
/// A rank in a collective without another one, for which nobody waits, may be about to leave as well.
inline constexpr Seconds kDeparture{1};

/// What other ranks get to hear of an end, before MPI_Abort kills them.
inline constexpr Seconds kHear{0.3};
/// What a rank that has heard leaves the one that it heard from, whose exit code is to be the job's: that of whoever is
/// first to abort.
inline constexpr Seconds kOrigin{2};
static_assert(kHear < kOrigin, "who has found out ends the job before who has heard");
/// What MPI_Finalize leaves notes and departures to arrive. Other ranks may be dead, or not come to their end yet.
inline constexpr Seconds kLastWords{1};

/// NCCL: what an abort waits for a call that another thread is in (one that waits for another rank is freed by the abort
/// itself), and has for itself where its caller waits.
inline constexpr Seconds kCallOfNccl{2};
inline constexpr Seconds kAbortOfNccl{3};
static_assert(kCallOfNccl < kAbortOfNccl, "the first is part of the second");
/// What the first errors of an NCCL that cannot work come within. Ranks that join wait for so long without more.
inline constexpr Seconds kFirstErrorOfNccl{0.5};
/// For ranks whose last collective is not through when this one's is; then the communicator is aborted.
inline constexpr Seconds kFinalizeNccl{5};

}  // namespace zerosched::detail::deadlines
