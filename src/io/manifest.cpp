#include "io/manifest.h"

#include "io/manifest_members.h"
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
// What double holds exactly, and what can be counted on from without overflow.
constexpr int64_t kMostSteps = int64_t{1} << 53;
// Less than the manifest itself may have.
constexpr size_t kMaxAddedDepth = 150;

json to_json_group(const Manifest::SavedGroup& group) {
  json options = json::array();
  for (const auto& [name, value] : group.options) options.push_back({name, to_json_number(value)});
  return {{"options", options}, {"k", group.state.k}, {"weight_sum", to_json_number(group.state.weight_sum)},
      {"lr_max", to_json_number(group.state.lr_max)},
      {"gradient_l1", to_json_number(group.state.gradient_l1)},
      {"y_weight", to_json_number(group.state.y_weight)}};
}

Manifest::SavedGroup parse_group(const json& value) {
  Manifest::SavedGroup group;
  const json& options = member(value, "options");
  if (!options.is_array()) fail_manifest("'options' is not an array");
  for (const json& option : options) {
    if (!option.is_array() || option.size() != 2) fail_manifest("'options' is not of pairs");
    group.options.emplace_back(text_of(option[0], "options"), number_of(option[1], "options"));
  }
  group.state.k = integer_of(member(value, "k"), "k", 0, kMostSteps);
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
  if (!value.is_array()) fail_manifest(std::string("'") + what + "' is not an array");
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
  if (!dtype) fail_manifest("'dtype' of parameter '" + parameter.name + "' is unknown");
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
  if (!value.is_object()) fail_manifest("'files' is not an object");
  std::map<std::string, ManifestFile> files;
  for (const auto& [name, entry] : value.items()) {
    ManifestFile& file = files[name];
    file.byte_count = static_cast<uint64_t>(
        integer_of(member(entry, "bytes"), "bytes", 0, std::numeric_limits<int64_t>::max()));
    const json& checksums = member(entry, "xxh3");
    if (!checksums.is_object()) fail_manifest("'xxh3' is not an object");
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
  if (!value.is_object()) fail_manifest("what the trainer added is not an object");
  JsonTexts texts;
  for (const auto& [name, document] : value.items()) texts[name] = document.dump();
  return texts;
}

void check_files(const Manifest& manifest) {
  for (int64_t rank = 0; rank < manifest.world_size; ++rank) {
    if (manifest.files.count(rank_file_name(rank)) == 0) {
      fail_manifest("it lacks " + rank_file_name(rank) + ", one of " + std::to_string(manifest.world_size));
    }
  }
  if (manifest.files.count(kModuleFileName) == 0) fail_manifest(std::string("it lacks ") + kModuleFileName);
  if (static_cast<int64_t>(manifest.files.size()) != manifest.world_size + 1)
    fail_manifest("it names files that do not belong");
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
  json whole = {{"format", kFormat}, {"version", kCheckpointVersion},
      {"library_version", manifest.library_version}, {"created", manifest.created},
      {"world_size", manifest.world_size}, {"optimizer", manifest.optimizer}, {"finite", manifest.finite},
      {"series", manifest.series}, {"groups", groups}, {"parameters", parameters}, {"tied", manifest.tied},
      {"files", to_json_files(manifest.files)}, {"shared", to_json_documents(manifest.shared_json)},
      {"local", local}};
  if (manifest.job) whole["job"] = to_json(*manifest.job);
  return whole.dump(1) + '\n';
}

Manifest parse_manifest(const std::string& text) {
  const json whole = parse_manifest_text(text, kFormat);
  Manifest manifest;
  manifest.library_version = text_of(member(whole, "library_version"), "library_version");
  manifest.created = integer_of(member(whole, "created"), "created", 0, std::numeric_limits<int64_t>::max());
  manifest.world_size = integer_of(member(whole, "world_size"), "world_size", 1, kMaxWorldSize);
  manifest.optimizer = text_of(member(whole, "optimizer"), "optimizer");
  if (whole.contains("finite")) manifest.finite = flag_of(whole["finite"], "finite");
  if (whole.contains("series")) manifest.series = text_of(whole["series"], "series");
  if (whole.contains("job")) manifest.job = parse_job_identity(whole["job"]);
  const json& groups = member(whole, "groups");
  if (!groups.is_array() || groups.empty()) fail_manifest("'groups' is not an array of groups");
  for (const json& group : groups) manifest.groups.push_back(parse_group(group));
  const json& parameters = member(whole, "parameters");
  if (!parameters.is_array()) fail_manifest("'parameters' is not an array");
  for (const json& parameter : parameters) {
    manifest.parameters.push_back(parse_parameter(parameter, static_cast<int64_t>(groups.size())));
  }
  const json& tied = member(whole, "tied");
  if (!tied.is_object()) fail_manifest("'tied' is not an object");
  for (const auto& [name, first] : tied.items()) manifest.tied[name] = text_of(first, "tied");
  manifest.files = parse_files(member(whole, "files"));
  check_files(manifest);
  manifest.shared_json = parse_documents(member(whole, "shared"));
  const json& local = member(whole, "local");
  if (!local.is_array() || static_cast<int64_t>(local.size()) != manifest.world_size) {
    fail_manifest("'local' is not an array with one entry per rank");
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
  const json whole = parse_json(text);
  return {parse_files(member(whole, "files")), flag_of(member(whole, "finite"), "finite"),
      parse_documents(member(whole, "local"))};
}

void check_numbers(const Manifest& manifest) {
  for (size_t g = 0; g < manifest.groups.size(); ++g) {
    const GroupState& state = manifest.groups[g].state;
    const auto require = [&](bool holds, const char* name, double value, const char* expected) {
      if (holds) return;
      fail_manifest(std::string("'") + name + "' of group " + std::to_string(g) + " is " +
                    std::to_string(value) + "; expected " + expected);
    };
    require(std::isfinite(state.weight_sum) && state.weight_sum >= 0, "weight_sum", state.weight_sum,
        "a finite number that is not negative");
    require(std::isfinite(state.lr_max) && (state.lr_max >= 0 || state.lr_max == -1), "lr_max", state.lr_max,
        "a finite number that is not negative, or -1 before the first step");
    require(state.y_weight >= 0 && state.y_weight <= 1, "y_weight", state.y_weight, "a number from 0 to 1");
  }
  for (const ParameterSpec& parameter : manifest.parameters) {
    int64_t most = std::numeric_limits<int64_t>::max() / 64;  // of bytes, with all that is added to them
    for (const int64_t size : parameter.sizes) most = size == 0 ? most : most / size;
    if (most == 0) fail_manifest("parameter '" + parameter.name + "' has more elements than there can be");
  }
}

void check_json(const JsonTexts& texts) {
  for (const auto& [name, text] : texts) {
    try {
      if (!is_utf8(name)) throw std::runtime_error("its name is not UTF-8, as names in JSON are");
      parse_json(text, kMaxAddedDepth);
    } catch (const std::exception& error) {
      throw std::runtime_error("what was added as '" + name + "': " + error.what());
    }
  }
}

}  // namespace zerosched::detail
