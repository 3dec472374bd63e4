#include "engine/untrained.h"

#include "engine/names_text.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <unordered_set>

namespace zerosched::detail {
namespace {

using Identities = std::unordered_set<const c10::TensorImpl*>;

// Names of those of `named` that are not in `known`.
void add_missing(std::vector<std::string>& missing, const NamedParameters& named, const Identities& known) {
  for (const auto& [name, tensor] : named) {
    if (known.count(tensor.unsafeGetTensorImpl()) == 0) missing.push_back(name);
  }
}

void add_missing(std::vector<std::string>& missing, const std::vector<at::Tensor>& tensors,
    const std::vector<std::string>& names, const Identities& known) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (known.count(tensors[i].unsafeGetTensorImpl()) == 0) missing.push_back(names[i]);
  }
}

}  // namespace

// How the module and the optimizer have come apart; empty if they have not, or the module is gone.
std::string Untrained::apart() const {
  const auto now = what_.module_now();
  if (!now) return {};
  Identities ours, theirs;
  for (const auto* tensors : {&model_.parameters, &model_.frozen, &model_.buffers}) {
    for (const at::Tensor& tensor : *tensors) ours.insert(tensor.unsafeGetTensorImpl());
  }
  for (const auto* named : {&now->parameters, &now->buffers}) {
    for (const auto& [name, tensor] : *named) theirs.insert(tensor.unsafeGetTensorImpl());
  }
  std::vector<std::string> added, removed;
  add_missing(added, now->parameters, ours);
  add_missing(added, now->buffers, ours);
  add_missing(removed, model_.parameters, model_.names, theirs);
  add_missing(removed, model_.frozen, model_.frozen_names, theirs);
  add_missing(removed, model_.buffers, model_.buffer_names, theirs);
  std::string text;
  if (!added.empty()) {
    text += " The module has " + names_text(added) + ", which the optimizer neither trains nor saves.";
  }
  if (!removed.empty()) {
    text += " The module no longer has " + names_text(removed) + ", which the optimizer holds.";
  }
  return text;
}

std::vector<std::string> Untrained::unused(const std::vector<bool>& used) const {
  const auto count = static_cast<int64_t>(used.size());
  const at::Tensor on_any_rank = at::empty({count}, at::kInt);
  auto* flags = on_any_rank.mutable_data_ptr<int>();
  for (size_t p = 0; p < used.size(); ++p) flags[p] = used[p] ? 1 : 0;
  communicator_.all_reduce(on_any_rank, ReduceOp::max, {"parameters used so far"})->wait();
  std::vector<std::string> names;
  for (size_t p = 0; p < used.size(); ++p) {
    if (flags[p] == 0 && model_.parameters[p].numel() > 0) names.push_back(model_.names[p]);
  }
  return names;
}

void Untrained::run(bool has_stepped, const std::function<std::vector<bool>()>& used) {
  const bool speaks = communicator_.rank() == 0;
  if (speaks && !told_apart_) {
    const std::string text = apart();
    told_apart_ = !text.empty();
    if (told_apart_) {
      TORCH_WARN("zerosched: the module was changed after its optimizer was constructed.", text,
          " Construct the optimizer once everything is registered, and anew after replacing something.");
    }
  }
  if (!has_stepped || asked_for_unused_) return;
  asked_for_unused_ = true;
  const std::vector<std::string> names = unused(used());
  if (speaks && !names.empty()) {
    TORCH_WARN("zerosched: no step so far, on any rank, had a gradient of ", names_text(names),
        ". Does forward use it, and is it the tensor that is registered? Assigning a member, as in "
        "`layer->weight = ...`, leaves the registered tensor behind.");
  }
}

}  // namespace zerosched::detail
