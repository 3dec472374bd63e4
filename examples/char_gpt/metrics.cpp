#include "metrics.h"

#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstring>
#include <stdexcept>

MetricsFile::MetricsFile(const std::string& path) : path_(path), file_(path) {
  if (!file_) throw std::runtime_error("cannot write --metrics " + path + ": " + std::strerror(errno));
}

void MetricsFile::write(const nlohmann::json& line) {
  if (path_.empty()) return;
  file_ << line << std::endl;
  if (!file_) throw std::runtime_error("cannot write --metrics " + path_ + ": " + std::strerror(errno));
}
