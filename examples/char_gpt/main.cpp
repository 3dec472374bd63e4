// Trains a small GPT on the bytes of a text, on the ranks that mpirun or srun started.

#include "corpus.h"
#include "metrics.h"
#include "options.h"
#include "readiness.h"
#include "train.h"

#include <zerosched/session.h>
#include <zerosched/stop_signal.h>

#include <cstdlib>
#include <exception>
#include <iomanip>
#include <iostream>
#include <optional>
#include <string>

namespace {

void print(const Options& options, const TrainResult& result) {
  std::cerr << result.timings.table() << std::flush;
  if (result.stopped) {
    std::cerr << "char_gpt: stopped by a signal after step " << result.steps << "; go on with --resume"
              << std::endl;
    return;
  }
  const auto& report = result.report;
  std::cout << std::fixed << std::setprecision(3)
            << "Held-out loss in nats per byte: " << report["eval_loss_x"].get<double>()
            << " at x (the averaged weights, which are shipped), " << report["eval_loss_y"].get<double>()
            << " at y\n";
  if (options.sample > 0) std::cout << "Sample:\n" << result.sample << '\n';
  if (options.json) std::cout << report << '\n';
  std::cout << std::flush;
}

zerosched::SessionOptions session_options(const CommandLine& line) {
  zerosched::SessionOptions result;
  // One rank speaks for all: enough to say what is wrong with the command line.
  if (!line.problem.empty() || !line.help.empty()) return result.device(at::kCPU);
  const Options& options = line.options;
  if (options.device != "auto") result.device(options.device == "cuda" ? at::kCUDA : at::kCPU);
  return result.timeout(options.timeout).backend(options.comm);
}

/// As the launcher says it, for when there is no session to ask.
bool is_rank_0() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const char* rank = std::getenv(name)) return std::string(rank) == "0";
  }
  return true;
}

int run(zerosched::Session& session, const CommandLine& line, const zerosched::StopSignal* stop) {
  if (!line.help.empty()) {
    if (session.rank() == 0) std::cout << line.help;
    return 0;
  }
  const Options& options = line.options;
  std::string problem = line.problem;

  std::optional<Corpus> corpus;
  if (problem.empty()) {
    try {
      corpus = options.data.empty() ? Corpus::random(options.seq, options.seed)
                                    : Corpus::from_file(options.data, options.seq);
      // Only whether it can be written: how much of it a resumed run keeps is not known yet.
      if (session.rank() == 0 && !options.metrics.empty()) check_writable(options.metrics);
    } catch (const std::exception& error) {
      problem = error.what();
    }
  }
  if (!every_rank_is_ready(session, problem)) return 2;

  try {
    const auto result = train(session, options, *corpus, stop);
    if (!result) return 2;
    if (session.rank() == 0) print(options, *result);
    if (result->stopped) return zerosched::kRequeueExitCode;
  } catch (const std::exception& error) {
    session.abort(message_of(error));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const CommandLine line = parse_command_line(argc, argv);
  // Before and after all else: a job may be told to stop while it joins, loads a checkpoint or takes its leave.
  std::optional<zerosched::StopSignal> stop;
  if (!line.options.checkpoint_dir.empty()) stop.emplace();
  std::optional<zerosched::Session> session;
  try {
    session.emplace(argc, argv, session_options(line));
  } catch (const c10::Error& error) {
    // --device and --comm do not fit the machine: every rank throws the same.
    if (is_rank_0()) std::cerr << "char_gpt: " << error.what_without_backtrace() << std::endl;
    return 2;
  }
  return run(*session, line, stop ? &*stop : nullptr);
}
