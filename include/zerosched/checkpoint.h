#pragma once

#include <zerosched/export.h>

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace zerosched {

class Communicator;
class ShardedOptimizer;

/// Tensors and JSON documents under names of the trainer's choice: RNG states, a scheduler's counters, the
/// position in the data.
struct ZEROSCHED_EXPORT CheckpointData {
  /// Any shape and device; float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8 or bool.
  /// They come back on the CPU, contiguous.
  std::map<std::string, at::Tensor> tensors;
  /// Texts of JSON documents. They come back as equal documents, formatted anew.
  std::map<std::string, std::string> json;
};

/// What a trainer adds to a checkpoint.
struct ZEROSCHED_EXPORT CheckpointExtra {
  CheckpointData shared;  ///< rank 0's, for every rank that loads
  CheckpointData local;   ///< each rank's own; empty where a job has more ranks than the one that saved
  int world_size =
      0;  ///< of the job that saved; filled in by load_checkpoint(), ignored by save_checkpoint()
};

/// How a checkpoint is saved.
struct ZEROSCHED_EXPORT CheckpointOptions {
  /// Once this checkpoint is whole, delete older ones beside it so that so many are left. 0 keeps all.
  /// Only those count that this training has saved, in this job or in those that it was resumed from, under names that
  /// differ in their numbers only: with run/step_00200 neither run/best nor what another optimizer saves in run. (Names
  /// without a number are all alike.) Folders that hold anything else than a checkpoint are never deleted, and neither
  /// is the newest whose state was finite when it was saved. Rank 0 warns of what cannot be deleted.
  TORCH_ARG(int64_t, keep_last) = 0;
};

/// How a checkpoint is loaded.
struct ZEROSCHED_EXPORT LoadOptions {
  /// Take what fits, by name, instead of refusing a checkpoint that does not fit as a whole: for other parameter groups, a
  /// new head, parameters that are frozen by now or no more, AdamW's state in a Schedule-Free optimizer.
  ///
  /// Options of the groups stay those of this optimizer. A group whose parameters are all there with state, which were in
  /// groups of the same k and weight_sum, goes on from there; without a z, x becomes z too and the average starts anew
  /// (weight_sum = 0). Any other group starts anew from the weights that there are: z = x, v = 0, k = 0. So a new head
  /// belongs in a group of its own. What the checkpoint has nothing of stays as it is. If nothing fits it is an error.
  TORCH_ARG(bool, partial) = false;
};

/// What was loaded.
struct ZEROSCHED_EXPORT LoadedCheckpoint {
  CheckpointExtra extra;  ///< what the trainer had added
  int world_size = 0;     ///< of the job that saved
  /// Of a partial load, by name of a parameter, buffer or group ("group 0"): what was taken, such as "z, x, v", "x" or
  /// "value". With several optimizers names begin with "optimizer 0: ".
  std::map<std::string, std::string> taken;
  /// And what was not, in this optimizer or in the checkpoint, and why.
  std::map<std::string, std::string> not_taken;
};

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
/// ended before it could point `root`/latest at it. An empty string if there is none, or no such folder. Local: on a
/// network file system ranks of different hosts may see different ones.
ZEROSCHED_EXPORT std::string latest_checkpoint(const std::string& root);
/// What rank 0 of `communicator` finds, on every rank. Collective.
ZEROSCHED_EXPORT std::string latest_checkpoint(const std::string& root, Communicator& communicator);

}  // namespace zerosched
