#pragma once

#include <nlohmann/json_fwd.hpp>

#include <fstream>
#include <string>

/// A file of metrics, one JSON object per line, flushed line by line so that it can be watched.
class MetricsFile {
 public:
  MetricsFile() = default;  // writes nothing
  /// Throws std::runtime_error if the file cannot be written.
  explicit MetricsFile(const std::string& path);

  /// Throws std::runtime_error if the line cannot be written, for example because the disk is full.
  void write(const nlohmann::json& line);

 private:
  std::string path_;
  std::ofstream file_;
};
