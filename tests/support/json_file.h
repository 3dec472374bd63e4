#pragma once

#include <nlohmann/json.hpp>

#include <fstream>
#include <stdexcept>
#include <string>

namespace zerosched::testing {

/// Figures of a benchmark into a file, unless it has no name. Throws if it cannot be written.
inline void write_json(const std::string& path, const nlohmann::json& figures) {
  if (path.empty()) return;
  std::ofstream out(path);
  out << figures.dump(1) << '\n' << std::flush;
  if (!out) throw std::runtime_error(path + " cannot be written");
}

}  // namespace zerosched::testing
