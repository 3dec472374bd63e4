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
  /// Folders that hold anything else than a checkpoint are never deleted, and neither is the newest whose state was
  /// finite when it was saved.
  TORCH_ARG(int64_t, keep_last) = 0;
};

/// Path of the newest whole checkpoint in `root`: the one that `root`/latest names, or, where a job ended
/// before it could say so, the last one saved. An empty string if there is none, or no such folder. Local.
ZEROSCHED_EXPORT std::string latest_checkpoint(const std::string& root);

}  // namespace zerosched
