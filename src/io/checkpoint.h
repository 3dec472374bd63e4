#pragma once

#include "engine/savable.h"
#include "engine/steering.h"

#include <zerosched/checkpoint_data.h>

#include <string>
#include <vector>

namespace zerosched::detail {

/// An optimizer as checkpoints see it.
struct CheckpointedOptimizer {
  Savable* optimizer = nullptr;
  GroupOptions options;  ///< of its groups now; overwritten by loading
};

/// zerosched::save_checkpoint(): of one optimizer, or of several as one. Collective over the ranks that all have.
void save_checkpoint(const std::vector<CheckpointedOptimizer>& optimizers, const std::string& dir,
    const CheckpointExtra& extra, const CheckpointOptions& how);
/// zerosched::load_checkpoint(). Where `optimizer` is null that optimizer's part is passed over.
LoadedCheckpoint load_checkpoint(
    const std::vector<CheckpointedOptimizer>& optimizers, const std::string& dir, const LoadOptions& how);

/// ShardedOptimizer::save_checkpoint().
inline void save_checkpoint(Savable& optimizer, const GroupOptions& options, const std::string& dir,
    const CheckpointExtra& extra, const CheckpointOptions& how) {
  save_checkpoint({{&optimizer, options}}, dir, extra, how);
}
/// ShardedOptimizer::load_checkpoint().
inline LoadedCheckpoint load_checkpoint(
    Savable& optimizer, const GroupOptions& options, const std::string& dir, const LoadOptions& how) {
  return load_checkpoint({{&optimizer, options}}, dir, how);
}

}  // namespace zerosched::detail
