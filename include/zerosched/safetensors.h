#pragma once

#include <zerosched/export.h>
#include <zerosched/sharded_optimizer.h>

#include <string>

namespace zerosched {

/// Writes the module's whole state to a safetensors file, under its own names and in its own dtypes and
/// shapes: parameters at `point` ("x", what is evaluated and shipped, or "y"), parameters that are not trained,
/// and buffers if the optimizer was given the module; buffers become rank 0's first, see
/// ShardingOptions::broadcast_buffers. Tied weights appear under each of their names, so that a strict load
/// succeeds.
///
/// Collective. Rank 0 writes, a bucket at a time: no rank holds more than one bucket beyond what it has. The
/// file is written beside `path`, synced and renamed; an older file at `path` stays until then. The mode and
/// the parameters are left as they are. What another optimizer of this process trains is written as it is. Throws a
/// CheckpointError on every rank, with the reason, if it cannot be written, gradients are in flight, or the point is "x"
/// and another optimizer has parameters of the module at its y: eval() brings those to x.
ZEROSCHED_EXPORT void export_safetensors(
    ShardedOptimizer& optimizer, const std::string& path, const std::string& point = "x");

/// Starts from the weights in a safetensors file: parameters, frozen parameters and buffers take its values,
/// converted to their dtypes, and x = z = y are the new parameters; v, k and lr_max are kept, weight_sum
/// becomes 0. What another optimizer of this process trains is left to that one, but must be in the file.
///
/// Collective; rank 0 reads and broadcasts. The file must have exactly the names that export_safetensors()
/// writes, in the same shapes; a tied weight may appear under one of its names only. Otherwise every rank
/// throws a CheckpointError, naming the tensor, and nothing has changed.
ZEROSCHED_EXPORT void import_safetensors(ShardedOptimizer& optimizer, const std::string& path);

}  // namespace zerosched
