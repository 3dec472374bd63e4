#pragma once

#include "comm/mpi/group.h"
#include "comm/mpi/share_memory.h"

#include <cstdint>
#include <memory>

namespace zerosched::detail {

/// Which ranks of `comm` share a host, as MPI or `options` say. Collective, and blocks: all ranks must be known to be here.
Hosts find_hosts(MPI_Comm comm, const MpiOptions& options);

/// A group of the ranks of `parent`, on a duplicate of it, that Progress drives. Collective, and blocks: all ranks must be
/// known to be here.
std::shared_ptr<MpiGroup> make_group(
    MPI_Comm parent, const MpiOptions& options, const Hosts& hosts, std::shared_ptr<Failure> failure);

/// The same on `comm`, which it takes over, with the id that all ranks have agreed on. Collective by `talk`.
std::shared_ptr<MpiGroup> make_group_on(MPI_Comm comm, uint64_t id, const MpiOptions& options,
    const Hosts& hosts, std::shared_ptr<Failure> failure, const SharingTalk& talk);

}  // namespace zerosched::detail
