// Looks at the ranks that it is started on, and says what would keep a training job from running well on
// them. launch/doctor starts it.

#include "bandwidth.h"
#include "checks.h"
#include "directory.h"
#include "facts.h"
#include "gather.h"
#include "report.h"
#include "stream.h"

#include <zerosched/exit_codes.h>
#include <zerosched/session.h>

#include <c10/util/Exception.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

namespace {

using zerosched::kFailureExitCode;

constexpr int kProblemsExitCode = 3;
constexpr int64_t kStreamMib = 64;  // at most, of a plain stream

// Without the stack that c10::Error appends.
std::string message_of(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  return c10_error != nullptr ? c10_error->what_without_backtrace() : error.what();
}

struct Options {
  std::string checkpoint_dir;
  std::vector<int64_t> sizes_mib{1, 8, 64};
  double timeout = 60;
  bool json = false;
};

void describe(CLI::App& app, Options& options) {
  app.add_option(
      "--checkpoint-dir", options.checkpoint_dir, "check that checkpoints can be written here by all ranks");
  app.add_option("--sizes", options.sizes_mib, "MiB to measure the collectives at; 0 measures none")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
  app.add_option("--timeout", options.timeout, "seconds until a collective that does not end is given up")
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", options.json, "print one JSON object instead of tables");
}

/// As the launcher says it, for when there is no session to ask.
bool is_rank_0() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(name)) return std::string(rank) == "0";
  }
  return true;
}

/// What read_probe() says of the next rank on the same host, empty if there is none.
std::string probe_neighbour(const std::vector<doctor::Facts>& facts, int rank) {
  const auto size = static_cast<int>(facts.size());
  for (int step = 1; step < size; ++step) {
    const auto& other = facts[static_cast<size_t>((rank + step) % size)];
    if (other.host == facts[static_cast<size_t>(rank)].host) return doctor::read_probe(other);
  }
  return "";
}

/// Collective; the same on every rank.
doctor::Report examine(const zerosched::Session& session, const Options& options) {
  auto& communicator = *session.communicator();
  doctor::Report report;
  for (const auto& facts : doctor::gather(communicator, doctor::collect_facts(session))) {
    report.ranks.push_back(facts.get<doctor::Facts>());
  }
  const auto& facts = report.ranks;
  const auto add = [&](std::vector<doctor::Finding> findings) {
    std::move(findings.begin(), findings.end(), std::back_inserter(report.findings));
  };
  add(check_ranks(facts));
  add(check_versions(facts));
  add(check_devices(facts));
  add(check_cores(facts));
  add(check_limits(facts));

  std::vector<std::string> probes;
  for (const auto& probe : doctor::gather(communicator, probe_neighbour(facts, session.rank()))) {
    probes.push_back(probe.get<std::string>());
  }
  add(check_shared_memory(facts, probes));

  std::vector<doctor::DirectoryUse> uses;
  if (!options.checkpoint_dir.empty()) {
    for (const auto& use :
        doctor::gather(communicator, doctor::use_directory(communicator, options.checkpoint_dir))) {
      uses.push_back(use.get<doctor::DirectoryUse>());
    }
  }
  add(check_directory(options.checkpoint_dir, facts, uses));

  for (const auto mib : options.sizes_mib) {
    if (mib == 0) continue;
    for (auto& line : doctor::measure_bandwidth(communicator, session.device(), mib))
      report.bandwidth.push_back(line);
  }
  const auto largest = *std::max_element(options.sizes_mib.begin(), options.sizes_mib.end());
  if (largest > 0) {
    report.stream = doctor::measure_stream(communicator, facts, std::min(largest, kStreamMib) << 20);
    add(check_network(report.stream, report.bandwidth));
  }
  return report;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Looks for what would keep a training job from running well on these ranks.", "zerosched_doctor");
  describe(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  std::optional<zerosched::Session> session;
  try {
    session.emplace(argc, argv, zerosched::SessionOptions().timeout(options.timeout));
  } catch (const std::exception& error) {
    // Every rank throws the same; what only some of them meet ends the job in the session.
    if (is_rank_0()) std::cerr << "zerosched_doctor: " << message_of(error) << std::endl;
    return kFailureExitCode;
  }
  try {
    const auto report = examine(*session, options);
    if (session->rank() == 0) {
      options.json ? print_json(report, std::cout) : print_table(report, std::cout);
    }
    return report.count(doctor::Level::problem) > 0 ? kProblemsExitCode : 0;
  } catch (const std::exception& error) {
    session->abort(message_of(error));
  }
}
