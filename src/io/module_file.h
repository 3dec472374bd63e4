#pragma once

#include <string>

namespace zerosched::detail {

class Engine;

/// As those of <zerosched/safetensors.h>. Collective.
void export_safetensors(Engine& engine, const std::string& path, const std::string& point);
void import_safetensors(Engine& engine, const std::string& path);

}  // namespace zerosched::detail
