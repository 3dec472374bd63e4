#pragma once

#include "comm/mpi/hosts.h"
#include "comm/mpi/shared_mapping.h"

#include <functional>
#include <memory>
#include <vector>

namespace zerosched::detail {

/// How share_memory() talks to the other ranks of a group. Both collective.
struct SharingTalk {
  std::function<std::vector<SharedFile>(const SharedFile&)> gather;  ///< by rank
  std::function<int(int)> lowest;                                    ///< of a number of each rank
};

/// `byte_count` bytes, the same on all ranks of a host, that those share; null on all ranks of the group if any host does not
/// allow it, which the first of its ranks warns of. Collective.
std::shared_ptr<SharedMapping> share_memory(
    const Hosts& hosts, int rank, int64_t byte_count, const SharingTalk& talk);

}  // namespace zerosched::detail
