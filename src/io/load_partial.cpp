// Loading what fits: other groups, a new head, another class of optimizer, parameters that are frozen by now or no more.
//
// Options stay those of the optimizer. A group goes on where the checkpoint's was if it can: all of its parameters are
// there with state, and were in groups with the same scalars. If not, it starts anew from the weights that there are, z = x
// and k = 0: second moments without the number of steps that they are the mean over would be scaled wrongly.
#include "engine/parameter_claim.h"
#include "io/load_plan.h"
#include "io/tensor_name.h"

#include <c10/util/StringUtil.h>

#include <optional>
#include <set>
#include <stdexcept>

namespace zerosched::detail {

namespace {

using From = LoadPlan::From;
using Source = LoadPlan::Source;

constexpr size_t kNamedInError = 3;

bool are_equal(const GroupState& a, const GroupState& b) {
  return a.k == b.k && a.weight_sum == b.weight_sum && a.lr_max == b.lr_max && a.y_weight == b.y_weight;
}

class Planner {
 public:
  explicit Planner(const LoadSubject& subject)
      : subject_(subject), manifest_(subject.saved.manifest()), model_(subject.state.model()) {
    for (const ParameterSpec& parameter : manifest_.parameters) trained_[parameter.name] = &parameter;
    for (const auto& [name, first] : manifest_.tied) {
      const auto found = trained_.find(first);
      if (found != trained_.end()) trained_.emplace(name, found->second);
    }
    for (const SafetensorsEntry& entry : subject.unsharded) unsharded_[entry.name] = &entry;
  }

  LoadPlan plan() {
    plan_.takes_options = false;
    for (size_t p = 0; p < model_.names.size(); ++p) plan_.parameters.push_back(source_of(p));
    for (size_t g = 0; g < subject_.state.groups().size(); ++g) plan_.groups.push_back(plan_group(g));
    for (const auto& [name, target] : tensor_name::unsharded(model_)) {
      plan_.unsharded.push_back(unsharded_source(name, target));
    }
    if (plan_.taken.empty())
      throw std::runtime_error(subject_.dir + ": nothing of it fits this optimizer" + first_reasons());
    list_the_rest();
    plan_.not_taken.emplace("options", "those of this optimizer stay");
    return std::move(plan_);
  }

 private:
  Source refuse(const std::string& name, const std::string& why) {
    plan_.not_taken.emplace(name, why);
    return {};
  }

  std::string other_shape(at::IntArrayRef there, at::IntArrayRef here) {
    return c10::str("has shape ", there, " there and ", here, " here");
  }

  const ParameterSpec* trained(const std::string& name) const {
    for (const std::string& each : names_of(model_, name)) {
      const auto found = trained_.find(each);
      if (found != trained_.end()) return found->second;
    }
    return nullptr;
  }

  const SafetensorsEntry* unsharded(const char* prefix, const std::string& name) const {
    for (const std::string& each : names_of(model_, name)) {
      const auto found = unsharded_.find(prefix + each);
      if (found != unsharded_.end()) return found->second;
    }
    return nullptr;
  }

  Source source_of(size_t p) {
    const ParameterSpec& own = model_.specs[p];
    if (const ParameterSpec* saved = trained(own.name)) {
      seen_.insert(saved->name);
      if (saved->sizes != own.sizes) return refuse(own.name, other_shape(saved->sizes, own.sizes));
      if (saved->strides != own.strides) {
        return refuse(own.name, c10::str("has strides ", at::IntArrayRef(saved->strides), " there and ",
                                    at::IntArrayRef(own.strides), " here"));
      }
      if ((saved->dtype == c10::ScalarType::Double) != (own.dtype == c10::ScalarType::Double)) {
        return refuse(own.name, "is " + safetensors_name(saved->dtype) + " there and " +
                                    safetensors_name(own.dtype) +
                                    " here, so their states are of different types");
      }
      return {From::state, saved->name};
    }
    if (const SafetensorsEntry* saved = unsharded(tensor_name::kFrozen, own.name)) {
      seen_.insert(saved->name);
      if (saved->shape != own.sizes) return refuse(own.name, other_shape(saved->shape, own.sizes));
      return {From::unsharded, saved->name};
    }
    return refuse(own.name, "is not in the checkpoint");
  }

  // Whether a tensor means here what one of its name means there. v is the mean of squared gradients in all classes; m is
  // their mean in one and their sum in another.
  bool is_there(const StateTensor& tensor) const {
    const bool means_the_same = tensor.starts_at_parameters || tensor.name == "v" ||
                                manifest_.optimizer == subject_.state.algorithm().name();
    return means_the_same && subject_.saved.tensors().count(tensor.name) > 0;
  }

  // Why the group cannot go on where the checkpoint's was; empty if it can.
  std::string why_anew(size_t group, GroupState& scalars) const {
    for (const StateTensor& tensor : subject_.state.algorithm().state()) {
      if (!tensor.starts_at_parameters && !is_there(tensor)) {
        return manifest_.optimizer + " has no " + tensor.name + " that would do for " +
               subject_.state.algorithm().name();
      }
    }
    std::optional<GroupState> saved;
    for (size_t p = 0; p < model_.names.size(); ++p) {
      if (static_cast<size_t>(model_.specs[p].group) != group) continue;
      const Source& source = plan_.parameters[p];
      if (source.from != From::state) {
        return "'" + model_.names[p] +
               "' has no state there; in a group of its own it would not keep the others from going on";
      }
      const auto there = static_cast<size_t>(trained_.at(source.name)->group);
      const GroupState& state = manifest_.groups[there].state;
      if (saved && !are_equal(*saved, state))
        return "its parameters were in groups of different k or weight_sum there";
      saved = state;
    }
    scalars = *saved;
    return {};
  }

  LoadPlan::PlannedGroup plan_group(size_t g) {
    LoadPlan::PlannedGroup group;
    group.scalars = subject_.state.groups()[g];
    group.stays = true;
    for (size_t p = 0; p < model_.names.size(); ++p) {
      const bool is_member = static_cast<size_t>(model_.specs[p].group) == g;
      group.stays = group.stays && !(is_member && plan_.parameters[p].from != From::nowhere);
    }
    if (group.stays) return group;
    const std::string name = "group " + std::to_string(g);
    const std::string why = why_anew(g, group.scalars);
    group.starts_anew = !why.empty();
    std::string tensors = "x";
    if (group.starts_anew) {
      group.scalars = GroupState();
      plan_.not_taken.emplace(name, "starts anew from the weights: " + why);
    } else {
      tensors = continue_from(group);
      plan_.taken.emplace(name, "k and what else it counts");
    }
    for (size_t p = 0; p < model_.names.size(); ++p) {
      Source& source = plan_.parameters[p];
      if (static_cast<size_t>(model_.specs[p].group) != g || source.from == From::nowhere) continue;
      if (group.starts_anew && source.from == From::state) source.from = From::weights;
      plan_.taken.emplace(model_.names[p], tensors);
    }
    return group;
  }

  // Names of the tensors that are taken. One that starts at the parameters, z, starts at x where there is none; then the
  // average starts anew.
  std::string continue_from(LoadPlan::PlannedGroup& group) const {
    std::string tensors;
    for (const StateTensor& tensor : subject_.state.algorithm().state()) {
      if (is_there(tensor)) {
        tensors += (tensors.empty() ? "" : ", ") + tensor.name;
      } else {
        group.scalars.weight_sum = 0;
      }
    }
    return tensors;
  }

  Source unsharded_source(const std::string& file_name, const at::Tensor& target) {
    const bool is_frozen = tensor_name::has_prefix(file_name, tensor_name::kFrozen);
    const char* prefix = is_frozen ? tensor_name::kFrozen : tensor_name::kBuffer;
    const std::string name = file_name.substr(std::string(prefix).size());
    const ParameterSpec* parameter = is_frozen ? trained(name) : nullptr;
    const SafetensorsEntry* entry = unsharded(prefix, name);
    if (parameter != nullptr) seen_.insert(parameter->name);
    if (entry != nullptr) seen_.insert(entry->name);
    if (ParameterClaim::is_claimed(target)) return refuse(name, "is trained by another optimizer");
    if (entry == nullptr && parameter == nullptr) return refuse(name, "is not in the checkpoint");
    const at::IntArrayRef there = entry != nullptr ? entry->shape : parameter->sizes;
    if (there != target.sizes()) return refuse(name, other_shape(there, target.sizes()));
    plan_.taken.emplace(name, entry != nullptr ? "value" : "x");
    if (entry != nullptr) return {From::unsharded, entry->name};
    return {From::weights, parameter->name};
  }

  void list_the_rest() {
    constexpr const char* kNobody = "is in the checkpoint, and not in this optimizer";
    for (const ParameterSpec& parameter : manifest_.parameters) {
      if (seen_.count(parameter.name) == 0) refuse(parameter.name, kNobody);
    }
    for (const SafetensorsEntry& entry : subject_.unsharded) {
      if (seen_.count(entry.name) > 0 || tensor_name::has_prefix(entry.name, tensor_name::kShared)) continue;
      refuse(entry.name.substr(entry.name.find(':') + 1), kNobody);
    }
  }

  std::string first_reasons() const {
    std::string text;
    size_t count = 0;
    for (const auto& [name, why] : plan_.not_taken) {
      if (count++ == kNamedInError) return text + ", ...";
      text += (text.empty() ? ": '" : ", '") + name + "' " + why;
    }
    return text;
  }

  const LoadSubject& subject_;
  const Manifest& manifest_;
  const Model& model_;
  std::map<std::string, const ParameterSpec*> trained_;       ///< saved, by each of their names
  std::map<std::string, const SafetensorsEntry*> unsharded_;  ///< saved, as the file calls them
  std::set<std::string> seen_;  ///< of these two, what something here is called as
  LoadPlan plan_;
};

}  // namespace

LoadPlan plan_partial(const LoadSubject& subject) { return Planner(subject).plan(); }

}  // namespace zerosched::detail
