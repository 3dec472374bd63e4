#pragma once

#include "facts.h"
#include "network.h"

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

namespace doctor {

enum class Level { ok, warning, problem };
NLOHMANN_JSON_SERIALIZE_ENUM(
    Level, {{Level::ok, "ok"}, {Level::warning, "warning"}, {Level::problem, "problem"}})

/// One line of the report. `advice` says what to do about it, and is empty if all is well.
struct Finding {
  std::string check;
  Level level = Level::ok;
  std::string what;
  std::string advice;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Finding, check, level, what, advice)

/// What one rank saw when it used the folder for checkpoints; empty strings where all went well.
struct DirectoryUse {
  std::string write_error;  ///< writing, syncing and renaming a file of its own
  std::string read_error;   ///< finding and reading rank 0's file
  int64_t free_bytes = 0;
  double seconds = 0;  ///< for `written_bytes`, synced and renamed
  int64_t written_bytes = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(DirectoryUse, write_error, read_error, free_bytes, seconds, written_bytes)

/// Each takes what all ranks said, in the order of ranks.
std::vector<Finding> check_ranks(const std::vector<Facts>& facts);
std::vector<Finding> check_versions(const std::vector<Facts>& facts);
std::vector<Finding> check_devices(const std::vector<Facts>& facts);
std::vector<Finding> check_cores(const std::vector<Facts>& facts);
std::vector<Finding> check_limits(const std::vector<Facts>& facts);
/// `probes`: what read_probe() of the next rank on the same host said; empty for a rank that is alone there.
std::vector<Finding> check_shared_memory(
    const std::vector<Facts>& facts, const std::vector<std::string>& probes);
std::vector<Finding> check_directory(
    const std::string& path, const std::vector<Facts>& facts, const std::vector<DirectoryUse>& uses);
/// Whether collectives of large tensors move what a plain stream does.
std::vector<Finding> check_network(const Stream& stream, const std::vector<Bandwidth>& bandwidth);

}  // namespace doctor
