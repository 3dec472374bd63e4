#pragma once

#include "io/manifest.h"

#include <filesystem>
#include <fstream>
#include <string>

namespace zerosched::testing {

/// A manifest of one rank, one group and one parameter "w".
inline detail::Manifest small_manifest(int64_t created = 1) {
  detail::Manifest manifest;
  manifest.library_version = "1.2.3";
  manifest.created = created;
  manifest.world_size = 1;
  manifest.optimizer = "SGD";
  manifest.groups.push_back({{{"lr", 0.1}}, {}});
  manifest.parameters.push_back({"w", {2}, {1}, c10::ScalarType::Float, 0});
  manifest.files["rank_00000.safetensors"] = {};
  manifest.files["module.safetensors"] = {};
  manifest.local_json = {{}};
  return manifest;
}

/// A folder that looks like a whole checkpoint, for what reads manifests only.
inline void make_small_checkpoint(const std::string& path, int64_t created) {
  std::filesystem::create_directories(path);
  std::ofstream(path + "/manifest.json") << detail::to_json(small_manifest(created));
  for (const char* name : {"/rank_00000.safetensors", "/module.safetensors"})
    std::ofstream(path + name) << "bytes";
}

}  // namespace zerosched::testing
