#include "engine/model.h"

#include "base/check.h"
#include "engine/shared_memory.h"
#include "kernels/kernels.h"

#include <c10/core/InferenceMode.h>

#include <map>
#include <unordered_map>

namespace zerosched::detail {
namespace {

/// What tensors are called. A tensor with several names is kept under the first.
class Names {
 public:
  /// Throws if another tensor has this name.
  void add(const std::string& name, const at::Tensor& tensor) {
    const auto [known, is_new_name] = by_name_.try_emplace(name, tensor.unsafeGetTensorImpl());
    ZEROSCHED_CHECK(known->second == tensor.unsafeGetTensorImpl(), "two parameters are named '", name,
        "'; checkpoints need a name of its own for each. Name them by group.");
    const auto [first, is_new_tensor] = first_.try_emplace(tensor.unsafeGetTensorImpl(), name);
    if (is_new_name && !is_new_tensor) tied_.push_back({name, first->second});
  }

  bool knows(const at::Tensor& tensor) const { return first_.count(tensor.unsafeGetTensorImpl()) > 0; }
  bool has(const std::string& name) const { return by_name_.count(name) > 0; }
  const std::string& first(const at::Tensor& tensor) const { return first_.at(tensor.unsafeGetTensorImpl()); }
  const std::vector<TiedName>& tied() const { return tied_; }

 private:
  std::map<std::string, const c10::TensorImpl*> by_name_;
  std::unordered_map<const c10::TensorImpl*, std::string> first_;
  std::vector<TiedName> tied_;
};

void check_usable(const at::Tensor& tensor, const char* kind, const std::string& name) {
  ZEROSCHED_CHECK(!tensor.is_inference(), kind, " '", name,
      "' was made in inference mode, in which tensors cannot be trained or loaded into later. Make or load "
      "the "
      "model outside of c10::InferenceMode, or give it a clone().");
}

void check_trainable(const at::Tensor& parameter, const std::string& name) {
  ZEROSCHED_CHECK(parameter.is_leaf(), "parameter '", name,
      "' is not a leaf: it was computed from other tensors. Give the optimizer the tensors that it "
      "was computed from.");
  ZEROSCHED_CHECK(kernels::is_supported(parameter.scalar_type()), "parameter '", name, "' is ",
      c10::toString(parameter.scalar_type()), "; Float, Double, BFloat16 and Half can be trained.",
      !parameter.is_complex() ? ""
                              : " Train its real view: register torch::view_as_real(value).clone() as the "
                                "parameter, and use torch::view_as_complex(parameter) in forward.");
  ZEROSCHED_CHECK(parameter.layout() == at::kStrided && parameter.is_non_overlapping_and_dense(),
      "parameter '", name,
      "' is not a dense tensor; call contiguous() on it before constructing the optimizer.");
}

// On all of them at once, because a move is the likely reason for a difference.
void check_devices(const Model& model, const device::Runtime& runtime) {
  ZEROSCHED_CHECK(model.device.is_cpu() || model.device.is_cuda(), "parameter '", model.names.front(),
      "' is on ", model.device, "; parameters on the CPU or on an NVIDIA GPU can be trained.");
  for (size_t p = 0; p < model.parameters.size(); ++p) {
    const at::Device device = runtime.device_of(model.parameters[p]);
    ZEROSCHED_CHECK(device == model.device, "parameter '", model.names[p], "' is on ", device, ", but '",
        model.names.front(), "' on ", model.device,
        "; move all of the module to one device before constructing the optimizer.");
  }
}

void freeze(Model& model, const std::string& name, const at::Tensor& parameter, bool for_good) {
  model.frozen.push_back(parameter);
  model.frozen_names.push_back(name);
  model.frozen_for_good.push_back(for_good);
}

void train(Model& model, const std::string& name, const at::Tensor& parameter, size_t group) {
  check_trainable(parameter, name);
  model.parameters.push_back(parameter);
  model.names.push_back(name);
  model.specs.push_back({name, parameter.sizes().vec(), parameter.strides().vec(), parameter.scalar_type(),
      static_cast<int64_t>(group)});
}

}  // namespace

Model inspect(const Trainable& what, const device::Runtime& runtime) {
  ZEROSCHED_CHECK(!c10::InferenceMode::is_enabled(),
      "the optimizer was constructed under c10::InferenceMode, and memory that is made there cannot be "
      "trained. "
      "Construct it outside of inference mode; eval() may be called inside.");
  Model model;
  Names names;
  const bool has_module = what.module().has_value();
  if (has_module) {
    for (const auto& [name, parameter] : what.module()->parameters) names.add(name, parameter);
  }
  std::unordered_map<const c10::TensorImpl*, std::pair<size_t, std::string>> given;  // group and name there
  for (size_t g = 0; g < what.groups().size(); ++g) {
    model.clamps.push_back({what.groups()[g].clamp_low(), what.groups()[g].clamp_high()});
    for (const auto& [given_name, parameter] : what.groups()[g].named_parameters()) {
      ZEROSCHED_CHECK(parameter.defined(), "parameter '", given_name, "' of group ", g, " is undefined.");
      const auto [before, is_new] =
          given.try_emplace(parameter.unsafeGetTensorImpl(), std::make_pair(g, given_name));
      ZEROSCHED_CHECK(before->second.first == g, "parameter '", given_name, "' of group ", g,
          " is also in group ", before->second.first, ", as '", before->second.second,
          "'; a parameter belongs to one group.");
      ZEROSCHED_CHECK(!has_module || names.knows(parameter), "parameter '", given_name, "' of group ", g,
          " is not one of the module's parameters. Give the optimizer the module that the groups were made "
          "of, "
          "after everything has been registered in it.");
      if (!has_module) names.add(given_name, parameter);
      if (!is_new) continue;
      const std::string& name = names.first(parameter);
      check_usable(parameter, "parameter", name);
      if (parameter.requires_grad()) {
        train(model, name, parameter, g);
      } else {
        freeze(model, name, parameter, /*for_good=*/true);
      }
    }
  }
  if (has_module) {
    for (const auto& [name, parameter] : what.module()->parameters) {
      if (given.count(parameter.unsafeGetTensorImpl()) > 0 || name != names.first(parameter)) continue;
      check_usable(parameter, "parameter", name);
      freeze(model, name, parameter, /*for_good=*/false);
    }
    for (const auto& [name, buffer] : what.module()->buffers) {
      ZEROSCHED_CHECK(!names.has(name), "a parameter and a buffer are both named '", name,
          "'; checkpoints need a name of its own for each.");
      check_usable(buffer, "buffer", name);
      model.buffers.push_back(buffer);
      model.buffer_names.push_back(name);
    }
  }
  model.tied = names.tied();
  ZEROSCHED_CHECK(!model.parameters.empty(),
      "there is nothing to train: no parameter that requires a gradient was given.");
  model.device = runtime.device_of(model.parameters.front());
  check_devices(model, runtime);
  check_no_shared_memory(model);
  return model;
}

std::vector<std::string> names_of(const Model& model, const std::string& name) {
  std::vector<std::string> names = {name};
  for (const TiedName& tied : model.tied) {
    if (tied.first_name == name) names.push_back(tied.name);
  }
  return names;
}

std::string unfrozen(const Model& model) {
  for (size_t f = 0; f < model.frozen.size(); ++f) {
    if (!model.frozen_for_good[f] || !model.frozen[f].requires_grad()) continue;
    return "parameter '" + model.frozen_names[f] +
           "' was frozen when the optimizer was constructed and now requires a gradient, but it has no place "
           "in any shard. Construct a new optimizer after unfreezing parameters.";
  }
  return {};
}

}  // namespace zerosched::detail
