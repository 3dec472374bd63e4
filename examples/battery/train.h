#pragma once

#include "options.h"
#include "task.h"

#include <zerosched/session.h>

#include <nlohmann/json.hpp>

#include <functional>

using WriteLine = std::function<void(const nlohmann::ordered_json&)>;

/// Trains `task`, evaluates it at x after the steps of options.evaluate_at, and gives `write` one object at the start, one
/// for each evaluation, and one at the end, on rank 0. A run whose gradient or metric is no longer finite ends there, and
/// says so. Collective.
void train(const zerosched::Session& session, const Options& options, Task& task, const WriteLine& write);
