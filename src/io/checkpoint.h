#pragma once

#include "engine/engine.h"

#include <zerosched/checkpoint.h>

#include <string>

namespace zerosched::detail {

/// ShardedOptimizer::save_checkpoint(). `options` are those of the groups now.
ZEROSCHED_EXPORT void save_checkpoint(Engine& engine, const GroupOptions& options, const std::string& dir,
    const CheckpointExtra& extra, const CheckpointOptions& how);

/// ShardedOptimizer::load_checkpoint(). `options` are overwritten.
ZEROSCHED_EXPORT CheckpointExtra load_checkpoint(
    Engine& engine, const GroupOptions& options, const std::string& dir);

}  // namespace zerosched::detail
