#pragma once

#include "corpus.h"
#include "metrics.h"
#include "options.h"

#include <zerosched/session.h>

#include <nlohmann/json.hpp>

#include <string>

struct TrainResult {
  nlohmann::json report;  ///< what --json prints
  std::string sample;     ///< on rank 0
};

/// Trains, evaluates at x and at y, and samples from x. Collective.
TrainResult train(
    const zerosched::Session& session, const Options& options, const Corpus& corpus, MetricsFile& metrics);
