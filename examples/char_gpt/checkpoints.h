#pragma once

#include "options.h"

#include <zerosched/sharded_optimizer.h>

#include <cstdint>
#include <random>

/// Where training is: what a checkpoint holds beside the optimizer's state.
struct Position {
  int64_t step = 0;  ///< steps done
  double first_loss = 0, last_loss = 0;
};

/// Saves to --checkpoint-dir/step_00000100 with the generator of batches and LibTorch's own of the model's
/// device, which draws dropout. Collective.
void save_checkpoint(zerosched::ShardedOptimizer& optimizer, const Options& options, const Position& position,
    const std::mt19937_64& generator, at::Device device);

/// Takes up the checkpoint that --resume asks for; where there is none yet, training starts at step 0. On
/// ranks or devices that the saved job did not have, generators are left as they are. Collective.
Position resume(zerosched::ShardedOptimizer& optimizer, const Options& options, std::mt19937_64& generator,
    at::Device device);
