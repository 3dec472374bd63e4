#include "io/checkpoint_summary.h"

#include "io/manifest_members.h"

#include <algorithm>
#include <limits>

namespace zerosched::detail {

namespace {

using nlohmann::json;

constexpr const char* kFormatOfSeveral = "zerosched checkpoint of several optimizers";
constexpr size_t kMostOptimizers = 10000;

std::vector<std::string> texts_of(const json& value, const char* name) {
  if (!value.is_array()) fail_manifest(std::string("'") + name + "' is not an array");
  std::vector<std::string> texts;
  for (const json& text : value) texts.push_back(text_of(text, name));
  return texts;
}

CheckpointSummary summary_of_one(const std::string& text) {
  Manifest manifest = parse_manifest(text);
  CheckpointSummary summary;
  summary.library_version = manifest.library_version;
  summary.created = manifest.created;
  summary.finite = manifest.finite;
  summary.series = {manifest.series};
  summary.job = manifest.job;
  summary.optimizers = {manifest.optimizer};
  for (const ParameterSpec& parameter : manifest.parameters) summary.parameters.push_back(parameter.name);
  return summary;
}

bool knows_series(const CheckpointSummary& summary) {
  return std::none_of(
      summary.series.begin(), summary.series.end(), [](const std::string& series) { return series.empty(); });
}

}  // namespace

bool is_of_several(const std::string& text) {
  if (text.find(kFormatOfSeveral) == std::string::npos) return false;  // most are not, and may be long
  const json whole = parse_json(text);
  const auto format = whole.is_object() ? whole.find("format") : whole.end();
  return whole.is_object() && format != whole.end() && *format == kFormatOfSeveral;
}

CheckpointSummary parse_summary(const std::string& text) {
  if (!is_of_several(text)) return summary_of_one(text);
  const json whole = parse_manifest_text(text, kFormatOfSeveral);
  CheckpointSummary summary;
  summary.is_of_several = true;
  summary.library_version = text_of(member(whole, "library_version"), "library_version");
  summary.created = integer_of(member(whole, "created"), "created", 0, std::numeric_limits<int64_t>::max());
  summary.finite = flag_of(member(whole, "finite"), "finite");
  summary.series = texts_of(member(whole, "series"), "series");
  summary.optimizers = texts_of(member(whole, "optimizers"), "optimizers");
  if (summary.optimizers.empty() || summary.optimizers.size() > kMostOptimizers ||
      summary.optimizers.size() != summary.series.size()) {
    fail_manifest("'optimizers' and 'series' do not have one entry per optimizer");
  }
  if (whole.contains("job")) summary.job = parse_job_identity(whole["job"]);
  return summary;
}

std::string to_json(const CheckpointSummary& summary) {
  json whole = {{"format", kFormatOfSeveral}, {"version", kCheckpointVersion},
      {"library_version", summary.library_version}, {"created", summary.created}, {"finite", summary.finite},
      {"series", summary.series}, {"optimizers", summary.optimizers}};
  if (summary.job) whole["job"] = to_json(*summary.job);
  return whole.dump(1) + '\n';
}

bool are_of_one_training(const CheckpointSummary& a, const CheckpointSummary& b) {
  if (a.optimizers != b.optimizers || a.is_of_several != b.is_of_several) return false;
  if (knows_series(a) && knows_series(b)) return a.series == b.series;
  return a.parameters == b.parameters;
}

}  // namespace zerosched::detail
