#pragma once

#include <string>

namespace zerosched::detail {

class Savable;

/// As those of <zerosched/safetensors.h>. Collective.
void export_safetensors(Savable& optimizer, const std::string& path, const std::string& point);
void import_safetensors(Savable& optimizer, const std::string& path);

}  // namespace zerosched::detail
