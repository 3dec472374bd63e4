#include "io/manifest.h"

#include "io/json.h"
#include "io/safetensors.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>

namespace zerosched::detail {

namespace {

using nlohmann::json;

constexpr const char* kFormat = "zerosched checkpoint";
constexpr int64_t kMaxWorldSize = int64_t{1} << 24;
// Less than the manifest itself may have.
constexpr size_t kMaxAddedDepth = 150;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("not a whole manifest: " + what); }

const json& member(const json& object, const char* name) {
  const auto found = object.is_object() ? object.find(name) : object.end();
  if (!object.is_object() || found == object.end()) fail(std::string("'") + name + "' is missing");
  return *found;
}

bool flag_of(const json& value, const char* name) {
  if (!value.is_boolean()) fail(std::string("'") + name + "' is neither true nor false");
  return value.get<bool>();
}

std::string text_of(const json& value, const char* what) {
  if (!value.is_string()) fail(std::string("'") + what + "' is not text");
  return value.get<std::string>();
}

int64_t integer_of(const json& value, const char* what, int64_t low, int64_t high) {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() ||
                        value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    fail(std::string("'") + what + "' is not an integer in its range");
  }
  return value.get<int64_t>();
}

// JSON has no infinities; they are written as text.
json to_json_number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

double number_of(const json& value, const char* what) {
  if (value.is_number()) return value.get<double>();
  const std::string text = value.is_string() ? value.get<std::string>() : std::string();
  if (text == "inf") return std::numeric_limits<double>::infinity();
  if (text == "-inf") return -std::numeric_limits<double>::infinity();
  if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
  fail(std::string("'") + what + "' is not a number");
}

json to_json_group(const Manifest::Group& group) {
  json options = json::array();
  for (const auto& [name, value] : group.options) options.push_back({name, to_json_number(value)});
  return {{"options", options}, {"k", group.state.k}, {"weight_sum", to_json_number(group.state.weight_sum)},
      {"lr_max", to_json_number(group.state.lr_max)},
      {"gradient_l1", to_json_number(group.state.gradient_l1)},
      {"y_weight", to_json_number(group.state.y_weight)}};
}

Manifest::Group parse_group(const json& value) {
  Manifest::Group group;
  const json& options = member(value, "options");
  if (!options.is_array()) fail("'options' is not an array");
  for (const json& option : options) {
    if (!option.is_array() || option.size() != 2) fail("'options' is not of pairs");
    group.options.emplace_back(text_of(option[0], "options"), number_of(option[1], "options"));
  }
  group.state.k = integer_of(member(value, "k"), "k", 0, std::numeric_limits<int64_t>::max());
  group.state.weight_sum = number_of(member(value, "weight_sum"), "weight_sum");
  group.state.lr_max = number_of(member(value, "lr_max"), "lr_max");
  // Not in checkpoints from before there was an optimizer that has it.
  if (value.contains("gradient_l1")) group.state.gradient_l1 = number_of(value["gradient_l1"], "gradient_l1");
  group.state.y_weight = number_of(member(value, "y_weight"), "y_weight");
  return group;
}

json to_json_parameter(const ParameterSpec& parameter) {
  return {{"name", parameter.name}, {"shape", parameter.sizes}, {"strides", parameter.strides},
      {"dtype", safetensors_name(parameter.dtype)}, {"group", parameter.group}};
}

std::vector<int64_t> sizes_of(const json& value, const char* what) {
  if (!value.is_array()) fail(std::string("'") + what + "' is not an array");
  std::vector<int64_t> sizes;
  for (const json& size : value)
    sizes.push_back(integer_of(size, what, 0, std::numeric_limits<int64_t>::max()));
  return sizes;
}

ParameterSpec parse_parameter(const json& value, int64_t groups) {
  ParameterSpec parameter;
  parameter.name = text_of(member(value, "name"), "name");
  parameter.sizes = sizes_of(member(value, "shape"), "shape");
  parameter.strides = sizes_of(member(value, "strides"), "strides");
  const auto dtype = safetensors_dtype(text_of(member(value, "dtype"), "dtype"));
  if (!dtype) fail("'dtype' of parameter '" + parameter.name + "' is unknown");
  parameter.dtype = *dtype;
  parameter.group = integer_of(member(value, "group"), "group", 0, groups - 1);
  return parameter;
}

json to_json_files(const std::map<std::string, ManifestFile>& files) {
  json result = json::object();
  for (const auto& [name, file] : files) {
    result[name] = {{"bytes", file.byte_count}, {"xxh3", file.checksums}};
  }
  return result;
}

std::map<std::string, ManifestFile> parse_files(const json& value) {
  if (!value.is_object()) fail("'files' is not an object");
  std::map<std::string, ManifestFile> files;
  for (const auto& [name, entry] : value.items()) {
    ManifestFile& file = files[name];
    file.byte_count = static_cast<uint64_t>(
        integer_of(member(entry, "bytes"), "bytes", 0, std::numeric_limits<int64_t>::max()));
    const json& checksums = member(entry, "xxh3");
    if (!checksums.is_object()) fail("'xxh3' is not an object");
    for (const auto& [tensor, checksum] : checksums.items())
      file.checksums[tensor] = text_of(checksum, "xxh3");
  }
  return files;
}

json to_json_documents(const JsonTexts& texts) {
  json result = json::object();
  for (const auto& [name, text] : texts) result[name] = json::parse(text);
  return result;
}

JsonTexts parse_documents(const json& value) {
  if (!value.is_object()) fail("what the trainer added is not an object");
  JsonTexts texts;
  for (const auto& [name, document] : value.items()) texts[name] = document.dump();
  return texts;
}

void check_files(const Manifest& manifest) {
  for (int64_t rank = 0; rank < manifest.world_size; ++rank) {
    if (manifest.files.count(rank_file_name(rank)) == 0) {
      fail("it lacks " + rank_file_name(rank) + ", one of " + std::to_string(manifest.world_size));
    }
  }
  if (manifest.files.count(kModuleFileName) == 0) fail(std::string("it lacks ") + kModuleFileName);
  if (static_cast<int64_t>(manifest.files.size()) != manifest.world_size + 1)
    fail("it names files that do not belong");
}

json parse_text(const std::string& text) {
  json parsed = parse_json(text);
  if (!parsed.is_object()) fail("it is not a JSON object");
  return parsed;
}

}  // namespace

std::string rank_file_name(int64_t rank) {
  char name[64];
  std::snprintf(name, sizeof(name), "rank_%05lld.safetensors", static_cast<long long>(rank));
  return name;
}

std::string to_json(const Manifest& manifest) {
  json groups = json::array();
  for (const auto& group : manifest.groups) groups.push_back(to_json_group(group));
  json parameters = json::array();
  for (const auto& parameter : manifest.parameters) parameters.push_back(to_json_parameter(parameter));
  json local = json::array();
  for (const auto& texts : manifest.local_json) local.push_back(to_json_documents(texts));
  const json whole = {{"format", kFormat}, {"version", kCheckpointVersion},
      {"library_version", manifest.library_version}, {"created", manifest.created},
      {"world_size", manifest.world_size}, {"optimizer", manifest.optimizer}, {"finite", manifest.finite},
      {"groups", groups}, {"parameters", parameters}, {"tied", manifest.tied},
      {"files", to_json_files(manifest.files)}, {"shared", to_json_documents(manifest.shared_json)},
      {"local", local}};
  return whole.dump(1) + '\n';
}

Manifest parse_manifest(const std::string& text) {
  const json whole = parse_text(text);
  if (text_of(member(whole, "format"), "format") != kFormat) fail("its format is another");
  const int64_t version =
      integer_of(member(whole, "version"), "version", 1, std::numeric_limits<int64_t>::max());
  if (version > kCheckpointVersion) {
    throw std::runtime_error("is of format version " + std::to_string(version) +
                             ", and this zerosched reads up to " + std::to_string(kCheckpointVersion) +
                             ": load it with a newer zerosched");
  }
  Manifest manifest;
  manifest.library_version = text_of(member(whole, "library_version"), "library_version");
  manifest.created = integer_of(member(whole, "created"), "created", 0, std::numeric_limits<int64_t>::max());
  manifest.world_size = integer_of(member(whole, "world_size"), "world_size", 1, kMaxWorldSize);
  manifest.optimizer = text_of(member(whole, "optimizer"), "optimizer");
  if (whole.contains("finite")) manifest.finite = flag_of(whole["finite"], "finite");
  const json& groups = member(whole, "groups");
  if (!groups.is_array() || groups.empty()) fail("'groups' is not an array of groups");
  for (const json& group : groups) manifest.groups.push_back(parse_group(group));
  const json& parameters = member(whole, "parameters");
  if (!parameters.is_array()) fail("'parameters' is not an array");
  for (const json& parameter : parameters) {
    manifest.parameters.push_back(parse_parameter(parameter, static_cast<int64_t>(groups.size())));
  }
  const json& tied = member(whole, "tied");
  if (!tied.is_object()) fail("'tied' is not an object");
  for (const auto& [name, first] : tied.items()) manifest.tied[name] = text_of(first, "tied");
  manifest.files = parse_files(member(whole, "files"));
  check_files(manifest);
  manifest.shared_json = parse_documents(member(whole, "shared"));
  const json& local = member(whole, "local");
  if (!local.is_array() || static_cast<int64_t>(local.size()) != manifest.world_size) {
    fail("'local' is not an array with one entry per rank");
  }
  for (const json& documents : local) manifest.local_json.push_back(parse_documents(documents));
  return manifest;
}

std::string to_json(const RankReport& report) {
  return json{{"files", to_json_files(report.files)}, {"finite", report.finite},
      {"local", to_json_documents(report.local_json)}}
      .dump();
}

RankReport parse_rank_report(const std::string& text) {
  const json whole = parse_text(text);
  return {parse_files(member(whole, "files")), flag_of(member(whole, "finite"), "finite"),
      parse_documents(member(whole, "local"))};
}

void check_json(const JsonTexts& texts) {
  for (const auto& [name, text] : texts) {
    try {
      parse_json(text, kMaxAddedDepth);
    } catch (const std::exception& error) {
      throw std::runtime_error("what was added as '" + name + "': " + error.what());
    }
  }
}

}  // namespace zerosched::detail
