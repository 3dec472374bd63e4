#pragma once

#include "io/json.h"

#include <cstdint>
#include <string>

// Members of manifests by name and type. What is missing or of another type is a std::runtime_error that says so.
namespace zerosched::detail {

[[noreturn]] void fail_manifest(const std::string& what);

const nlohmann::json& member(const nlohmann::json& object, const char* name);
bool flag_of(const nlohmann::json& value, const char* name);
std::string text_of(const nlohmann::json& value, const char* name);
/// In [low, high].
int64_t integer_of(const nlohmann::json& value, const char* name, int64_t low, int64_t high);
/// JSON has no infinities and no NaN; they are written as text.
nlohmann::json to_json_number(double value);
double number_of(const nlohmann::json& value, const char* name);

/// The object in a manifest's text, of the format `format` and of a version that this library reads.
nlohmann::json parse_manifest_text(const std::string& text, const char* format);

}  // namespace zerosched::detail
