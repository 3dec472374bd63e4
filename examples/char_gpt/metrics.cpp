#include "metrics.h"

#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace {

// A line of a job that was killed while it wrote, or of steps that are done again, is left out.
std::string lines_up_to(const std::string& path, int64_t last_step) {
  std::ifstream file(path);
  std::string kept;
  for (std::string line; std::getline(file, line);) {
    const auto parsed = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object() && parsed.value("step", int64_t{0}) <= last_step) kept += line + '\n';
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, int64_t last_step) : path_(path) {
  const std::string kept = last_step > 0 ? lines_up_to(path, last_step) : std::string();
  file_.open(path);
  file_ << kept << std::flush;
  if (!file_) throw std::runtime_error("cannot write --metrics " + path + ": " + std::strerror(errno));
}

void MetricsFile::write(const nlohmann::json& line) {
  if (path_.empty()) return;
  file_ << line << std::endl;
  if (!file_) throw std::runtime_error("cannot write --metrics " + path_ + ": " + std::strerror(errno));
}

void check_writable(const std::string& path) {
  if (!std::ofstream(path, std::ios::app)) {
    throw std::runtime_error("cannot write --metrics " + path + ": " + std::strerror(errno));
  }
}
