#include "io/manifest_members.h"

#include "io/manifest.h"

#include <cmath>
#include <limits>
#include <stdexcept>

namespace zerosched::detail {

using nlohmann::json;

void fail_manifest(const std::string& what) { throw std::runtime_error("not a whole manifest: " + what); }

const json& member(const json& object, const char* name) {
  const auto found = object.is_object() ? object.find(name) : object.end();
  if (!object.is_object() || found == object.end()) fail_manifest(std::string("'") + name + "' is missing");
  return *found;
}

bool flag_of(const json& value, const char* name) {
  if (!value.is_boolean()) fail_manifest(std::string("'") + name + "' is neither true nor false");
  return value.get<bool>();
}

std::string text_of(const json& value, const char* name) {
  if (!value.is_string()) fail_manifest(std::string("'") + name + "' is not text");
  return value.get<std::string>();
}

int64_t integer_of(const json& value, const char* name, int64_t low, int64_t high) {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() ||
                        value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    fail_manifest(std::string("'") + name + "' is not an integer in its range");
  }
  return value.get<int64_t>();
}

json to_json_number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

double number_of(const json& value, const char* name) {
  if (value.is_number()) return value.get<double>();
  const std::string text = value.is_string() ? value.get<std::string>() : std::string();
  if (text == "inf") return std::numeric_limits<double>::infinity();
  if (text == "-inf") return -std::numeric_limits<double>::infinity();
  if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
  fail_manifest(std::string("'") + name + "' is not a number");
}

json parse_manifest_text(const std::string& text, const char* format) {
  json whole = parse_json(text);
  if (!whole.is_object()) fail_manifest("it is not a JSON object");
  if (text_of(member(whole, "format"), "format") != format) fail_manifest("its format is another");
  const int64_t version =
      integer_of(member(whole, "version"), "version", 1, std::numeric_limits<int64_t>::max());
  if (version > kCheckpointVersion) {
    throw std::runtime_error("is of format version " + std::to_string(version) +
                             ", and this zerosched reads up to " + std::to_string(kCheckpointVersion) +
                             ": load it with a newer zerosched");
  }
  return whole;
}

}  // namespace zerosched::detail
