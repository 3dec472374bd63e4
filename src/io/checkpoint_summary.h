#pragma once

#include "io/manifest.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::detail {

/// What a checkpoint says of itself as a whole: of one optimizer, a part of its manifest; of several, all that the manifest
/// at the top says, with each optimizer's own in a folder below.
struct CheckpointSummary {
  std::string library_version;
  int64_t created = 0;  ///< nanoseconds since 1970
  bool finite = true;
  std::vector<std::string> series;      ///< of each optimizer, see CheckpointSeries; empty if unknown
  std::optional<JobIdentity> job;       ///< that saved it
  std::vector<std::string> optimizers;  ///< their classes
  std::vector<std::string> parameters;  ///< names, of one optimizer only
  bool is_of_several = false;

  /// Folders below.
  size_t parts() const { return is_of_several ? optimizers.size() : 0; }
};

/// Of either kind of manifest. Throws std::runtime_error if it is not whole.
CheckpointSummary parse_summary(const std::string& text);
/// The manifest at the top of a checkpoint of several optimizers.
std::string to_json(const CheckpointSummary& summary);
/// Whether a manifest's text is of several optimizers, whole or not.
bool is_of_several(const std::string& text);

/// Whether the same training has saved both: the same optimizers, in this job or in those that it was resumed from.
bool are_of_one_training(const CheckpointSummary& a, const CheckpointSummary& b);

}  // namespace zerosched::detail
