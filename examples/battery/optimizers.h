#pragma once

#include "options.h"

#include <zerosched/session.h>
#include <zerosched/sharded_optimizer.h>

#include <memory>
#include <string>

/// Whether it takes a schedule: those that Schedule-Free is compared with.
bool takes_schedule(const std::string& optimizer);

/// That there is no such optimizer, or which option it does not take, or an empty string.
std::string problem_with_optimizer(const Options& options);

/// One that leaves out steps whose gradient is not finite, and counts them. Collective.
std::unique_ptr<zerosched::ShardedOptimizer> make_optimizer(
    const zerosched::Session& session, const Options& options, const torch::nn::Module& module);

/// Sets the learning rate for step `step`, counted from 1, of those optimizers that take a schedule; others warm up by
/// themselves.
void schedule_lr(zerosched::ShardedOptimizer& optimizer, const Options& options, int64_t step);
