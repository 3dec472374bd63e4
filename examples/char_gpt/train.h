#pragma once

#include "corpus.h"
#include "options.h"

#include <zerosched/session.h>
#include <zerosched/stop_signal.h>
#include <zerosched/timings.h>

#include <nlohmann/json.hpp>

#include <optional>
#include <string>

struct TrainResult {
  nlohmann::json report;            ///< what --json prints
  std::string sample;               ///< on rank 0
  zerosched::TimingReport timings;  ///< of all ranks
  int64_t steps = 0;                ///< done, those of the run that was resumed included
  bool stopped = false;             ///< by a signal: a checkpoint is saved, and there is no report
};

/// Trains, evaluates at x and at y, and samples from x. Nothing if the options or the checkpoint to resume
/// make training impossible; then one rank has said why. A `stop` that is not null is asked in every step. Collective.
std::optional<TrainResult> train(const zerosched::Session& session, const Options& options,
    const Corpus& corpus, const zerosched::StopSignal* stop);
