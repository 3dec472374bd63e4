#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <fstream>
#include <string>

/// A file of metrics, one JSON object per line, flushed line by line so that it can be watched.
class MetricsFile {
 public:
  MetricsFile() = default;  // writes nothing
  /// A new file, or the lines of an old one up to step `last_step`, to go on after. Throws std::runtime_error
  /// if the file cannot be written.
  explicit MetricsFile(const std::string& path, int64_t last_step = 0);

  /// Throws std::runtime_error if the line cannot be written, for example because the disk is full.
  void write(const nlohmann::json& line);

 private:
  std::string path_;
  std::ofstream file_;
};

/// Throws std::runtime_error, saying why, unless `path` can be written to. Its contents stay.
void check_writable(const std::string& path);
