#pragma once

#include <zerosched/export.h>

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cstdint>
#include <map>
#include <string>

namespace zerosched {

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
  /// is the newest whose state was finite when it was saved, nor what another process on this machine has saved that still
  /// runs. Jobs on several machines that were resumed from one checkpoint cannot be told apart: give them folders of their
  /// own. Rank 0 warns of what cannot be deleted.
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

}  // namespace zerosched
