#pragma once

#include "options.h"

#include <zerosched/session.h>
#include <zerosched/sharded_optimizer.h>

#include <memory>
#include <string>

class Gpt;  // model.h, which takes long to compile

/// Which optimizers there are, if there is none of that name, or an empty string.
std::string problem_with_optimizer(const std::string& name);

/// Collective.
std::unique_ptr<zerosched::ShardedOptimizer> make_optimizer(
    const zerosched::Session& session, const Options& options, const Gpt& model);

/// Before step `step`, counted from 1. Schedule-Free optimizers need no schedule and warm up by themselves;
/// AdamW and SGD get a linear warmup and then half a cosine down to 0 at the last step.
void schedule_lr(zerosched::ShardedOptimizer& optimizer, const Options& options, int64_t step);
