#pragma once

#include <zerosched/checkpoint_data.h>
#include <zerosched/export.h>

#include <string>
#include <vector>

namespace zerosched {

class Communicator;
class ShardedOptimizer;

/// Saves several optimizers, of a generator and its critic for one, as one checkpoint: all of the same step, or none. As
/// ShardedOptimizer::save_checkpoint() otherwise; `dir` has a folder for each, optimizer_0, optimizer_1, ..., which loads
/// by itself, too.
///
/// Collective over the ranks of the optimizers, which must be the same in all. Throws if one is null or given twice.
ZEROSCHED_EXPORT void save_checkpoint(const std::string& dir,
    const std::vector<ShardedOptimizer*>& optimizers, const CheckpointExtra& extra = {},
    const CheckpointOptions& options = {});

/// Takes up what save_checkpoint() has saved of several optimizers, given in the same order; where a pointer is null
/// that optimizer's part is passed over. Returns what the trainer had added. As ShardedOptimizer::load_checkpoint()
/// otherwise: nothing has changed in any of them if something does not fit in one. Collective.
ZEROSCHED_EXPORT CheckpointExtra load_checkpoint(
    const std::string& dir, const std::vector<ShardedOptimizer*>& optimizers);
/// The same with options.
ZEROSCHED_EXPORT LoadedCheckpoint load_checkpoint(
    const std::string& dir, const std::vector<ShardedOptimizer*>& optimizers, const LoadOptions& options);

/// Path of the newest whole checkpoint in `root`, of one optimizer or of several: the last one saved, also where a job
/// ended before it could point `root`/latest at it. An empty string if there is none, or no such folder. Throws a
/// CheckpointError if the folder or a manifest in it is there and cannot be read, as a training that starts anew would
/// replace what it could go on with. Local: on a network file system ranks of different hosts may see different ones.
ZEROSCHED_EXPORT std::string latest_checkpoint(const std::string& root);
/// What rank 0 of `communicator` finds, on every rank, or that it cannot. Collective.
ZEROSCHED_EXPORT std::string latest_checkpoint(const std::string& root, Communicator& communicator);

}  // namespace zerosched
