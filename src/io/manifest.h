#pragma once

#include "io/job_identity.h"
#include "layout/layout.h"
#include "optim/group_state.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::detail {

constexpr int64_t kCheckpointVersion = 1;
constexpr const char* kManifestName = "manifest.json";
/// The file with what is not cut into shards.
constexpr const char* kModuleFileName = "module.safetensors";

/// "rank_00003.safetensors"
std::string rank_file_name(int64_t rank);

/// JSON documents by name, as texts.
using JsonTexts = std::map<std::string, std::string>;

/// One safetensors file of a checkpoint.
struct ManifestFile {
  uint64_t byte_count = 0;
  std::map<std::string, std::string> checksums;  ///< by tensor, see Checksum
};

/// What a checkpoint says of itself: manifest.json.
struct Manifest {
  std::string library_version;
  int64_t created = 0;  ///< nanoseconds since 1970
  int64_t world_size = 0;
  std::string optimizer;
  bool finite = true;              ///< no inf or NaN is known to be in the state
  std::string series;              ///< see CheckpointSeries; empty in what older versions saved
  std::optional<JobIdentity> job;  ///< that saved it
  struct SavedGroup {
    OptionValues options;
    GroupState state;
  };
  std::vector<SavedGroup> groups;
  std::vector<ParameterSpec> parameters;      ///< in registration order
  std::map<std::string, std::string> tied;    ///< other name -> the one it is kept under
  std::map<std::string, ManifestFile> files;  ///< by name
  JsonTexts shared_json;
  std::vector<JsonTexts> local_json;  ///< by rank
};

/// What one rank contributes to it.
struct RankReport {
  std::map<std::string, ManifestFile> files;
  bool finite = true;  ///< of its shard
  JsonTexts local_json;
};

std::string to_json(const Manifest& manifest);
/// Throws std::runtime_error if the text is not a whole manifest of this format and version, and says why.
/// Numbers are in range, files are named as this format names them, and there is one for every rank.
Manifest parse_manifest(const std::string& text);

/// Throws std::runtime_error, naming group and number, unless the scalars of the groups are what training makes them, and
/// the parameters as large as they can be. Options are the optimizer's to check.
void check_numbers(const Manifest& manifest);

std::string to_json(const RankReport& report);
RankReport parse_rank_report(const std::string& text);

/// Throws std::runtime_error, naming the document, unless each text is JSON.
void check_json(const JsonTexts& texts);

}  // namespace zerosched::detail
