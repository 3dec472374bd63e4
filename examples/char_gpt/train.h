#pragma once

#include "corpus.h"
#include "options.h"

#include <zerosched/session.h>

#include <nlohmann/json.hpp>

#include <string>

struct TrainResult {
  nlohmann::json report;  ///< what --json prints
  std::string sample;     ///< on rank 0
  int64_t steps = 0;      ///< done, those of the run that was resumed included
  bool stopped = false;   ///< by a signal: a checkpoint is saved, and there is no report
};

/// Trains, evaluates at x and at y, and samples from x. Collective.
TrainResult train(const zerosched::Session& session, const Options& options, const Corpus& corpus);
