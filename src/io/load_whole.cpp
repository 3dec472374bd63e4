// Strict loading: everything has to fit.
#include "io/load_plan.h"
#include "io/tensor_name.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <set>
#include <stdexcept>

namespace zerosched::detail {

namespace {

constexpr const char* kPartial = "; LoadOptions().partial(true) takes what fits";

[[noreturn]] void refuse(const std::string& dir, const std::string& what) {
  throw std::runtime_error(dir + ": " + what);
}

bool is_double(const ParameterSpec& parameter) { return parameter.dtype == c10::ScalarType::Double; }

void check_parameter(const std::string& dir, const ParameterSpec& saved, const ParameterSpec& own) {
  const std::string who = "parameter '" + own.name + "' ";
  if (saved.sizes != own.sizes) {
    refuse(dir, c10::str(who, "has shape ", at::IntArrayRef(saved.sizes), " there and ",
                    at::IntArrayRef(own.sizes), " here", kPartial));
  }
  if (saved.strides != own.strides) {
    refuse(dir, c10::str(who, "has strides ", at::IntArrayRef(saved.strides), " there and ",
                    at::IntArrayRef(own.strides),
                    " here; construct the optimizer over a module in the memory format that was saved"));
  }
  if (saved.group != own.group) {
    refuse(dir, who + "is in group " + std::to_string(saved.group) + " there and in group " +
                    std::to_string(own.group) + " here" + kPartial);
  }
  if (is_double(saved) != is_double(own)) {
    refuse(dir, who + "is " + safetensors_name(saved.dtype) + " there and " + safetensors_name(own.dtype) +
                    " here, so their states are of different types");
  }
}

bool has(const std::vector<SafetensorsEntry>& entries, const std::string& name) {
  return std::any_of(
      entries.begin(), entries.end(), [&](const SafetensorsEntry& entry) { return entry.name == name; });
}

void check_trained(const LoadSubject& subject) {
  const Manifest& manifest = subject.saved.manifest();
  const Model& model = subject.state.model();
  std::map<std::string, const ParameterSpec*> saved;
  for (const ParameterSpec& parameter : manifest.parameters) saved[parameter.name] = &parameter;
  for (const ParameterSpec& own : model.specs) {
    const auto found = saved.find(own.name);
    if (found == saved.end()) {
      const bool frozen = has(subject.unsharded, tensor_name::kFrozen + own.name);
      refuse(subject.dir, "has no parameter '" + own.name + "', which this optimizer trains" +
                              (frozen ? ": it was frozen there" : "") + kPartial);
    }
    check_parameter(subject.dir, *found->second, own);
    saved.erase(found);
  }
  if (saved.empty()) return;
  const std::string& name = saved.begin()->first;
  const bool frozen =
      std::find(model.frozen_names.begin(), model.frozen_names.end(), name) != model.frozen_names.end();
  refuse(subject.dir, "has parameter '" + name + "', which this optimizer does not train" +
                          (frozen ? ": it is frozen here" : "") + kPartial);
}

void check_unsharded(const LoadSubject& subject, const NamedTensors& own) {
  const std::string file = subject.dir + '/' + kModuleFileName;
  std::map<std::string, at::IntArrayRef> present;
  std::set<std::string> expected;
  for (const auto& named : own) expected.insert(named.first);
  for (const SafetensorsEntry& entry : subject.unsharded) {
    if (tensor_name::has_prefix(entry.name, tensor_name::kShared)) continue;
    if (expected.count(entry.name) == 0) {
      refuse(file, "has '" + entry.name + "', which this optimizer does not know" + kPartial);
    }
    present[entry.name] = entry.shape;
  }
  for (const auto& [name, target] : own) {
    const auto found = present.find(name);
    if (found == present.end()) refuse(file, "has no '" + name + "'" + kPartial);
    if (found->second != target.sizes()) {
      refuse(file, c10::str("'", name, "' has shape ", found->second, " there and ", target.sizes(), " here",
                       kPartial));
    }
  }
}

}  // namespace

void check_state_tensors(const LoadSubject& subject) {
  const Manifest& manifest = subject.saved.manifest();
  const bool has_state = std::any_of(manifest.parameters.begin(), manifest.parameters.end(),
      [](const ParameterSpec& parameter) { return parameter.numel() > 0; });
  std::set<std::string> own;
  for (const StateTensor& tensor : subject.state.algorithm().state()) own.insert(tensor.name);
  const std::set<std::string>& saved = subject.saved.tensors();
  if (!has_state || saved == own) return;
  refuse(subject.dir, "its state is " + c10::Join(", ", saved) + ", and that of this " + manifest.optimizer +
                          " is " + c10::Join(", ", own) +
                          "; construct the optimizer with the options that were saved" + kPartial);
}

LoadPlan plan_whole(const LoadSubject& subject) {
  const Manifest& manifest = subject.saved.manifest();
  const OptimizerState& state = subject.state;
  if (manifest.optimizer != state.algorithm().name()) {
    refuse(subject.dir, "was saved by " + manifest.optimizer + ", and this optimizer is " +
                            state.algorithm().name() + kPartial);
  }
  if (manifest.groups.size() != state.groups().size()) {
    refuse(subject.dir, "has " + std::to_string(manifest.groups.size()) +
                            " parameter groups, and this optimizer has " +
                            std::to_string(state.groups().size()) + kPartial);
  }
  check_trained(subject);
  const NamedTensors unsharded = tensor_name::unsharded(state.model());
  check_unsharded(subject, unsharded);

  LoadPlan plan;
  for (const std::string& name : state.model().names)
    plan.parameters.push_back({LoadPlan::From::state, name});
  for (const auto& named : unsharded) plan.unsharded.push_back({LoadPlan::From::unsharded, named.first});
  for (const Manifest::SavedGroup& group : manifest.groups)
    plan.groups.push_back({false, false, group.state});
  return plan;
}

}  // namespace zerosched::detail
