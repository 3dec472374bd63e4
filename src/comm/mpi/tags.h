#pragma once

#include <cstdint>

namespace zerosched::detail {

// Tags of the library's point-to-point messages on its duplicate of a communicator. MPI guarantees tags up to
// 32767.
inline constexpr int kControlTag = 1;

// Collectives in flight use consecutive tags, so that neither their headers nor the chunks of their data mix; each
// kind has its own, so that ranks in different collectives by mistake do not take each other's data.
inline constexpr int kTagsInTurn = 1024;
inline int header_tag(int64_t sequence) { return 1024 + static_cast<int>(sequence % kTagsInTurn); }
inline int reduce_scatter_tag(int64_t sequence) { return 2048 + static_cast<int>(sequence % kTagsInTurn); }
inline int all_gather_tag(int64_t sequence) { return 3072 + static_cast<int>(sequence % kTagsInTurn); }
// What a reduce-scatter's receivers have room for.
inline int credit_tag(int64_t sequence) { return 4096 + static_cast<int>(sequence % kTagsInTurn); }

// The one tag that is used on the caller's communicator, by await_all_ranks(), and only once a rank has waited
// for the timeout in vain: a program's own messages there, wildcard receives included, are not disturbed while
// all is well.
inline constexpr int kRollCallTag = 32749;

}  // namespace zerosched::detail
