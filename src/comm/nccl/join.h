#pragma once

#include "comm/nccl/options.h"

#include <zerosched/communicator.h>

#include <memory>
#include <optional>

namespace zerosched::detail {

class NcclGroup;

/// Connects the ranks of `bootstrap` through NCCL, from scratch or, if that is not null and NCCL can, by splitting the
/// communicator of `parent`, which has the same ranks. Collective; what is wrong on one rank is thrown on all.
std::shared_ptr<NcclGroup> join_nccl(Communicator& bootstrap, std::optional<at::Device> device,
    NcclOptions options, NcclGroup* parent = nullptr);

}  // namespace zerosched::detail
