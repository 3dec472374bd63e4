#pragma once

#include "options.h"

#include <zerosched/session.h>
#include <zerosched/sharded_optimizer.h>

#include <memory>
#include <string>
#include <vector>

class Gpt;  // model.h, which takes long to compile

/// What --optimizer may be.
std::vector<std::string> optimizer_names();

/// Collective.
std::unique_ptr<zerosched::ShardedOptimizer> make_optimizer(
    const zerosched::Session& session, const Options& options, const Gpt& model);

/// Before step `step`, counted from 1. Schedule-Free optimizers need no schedule and warm up by themselves;
/// adamw and sgd get a linear warmup and then half a cosine down to 0 at the last step.
void schedule_lr(zerosched::ShardedOptimizer& optimizer, const Options& options, int64_t step);
