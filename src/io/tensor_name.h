#pragma once

#include "engine/model.h"

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

// How tensors are called in a checkpoint's files. Pieces of state are called as PieceName says; exported
// files have the module's own names.
namespace zerosched::detail::tensor_name {

inline constexpr const char* kFrozen = "frozen:";
inline constexpr const char* kBuffer = "buffer:";
inline constexpr const char* kShared = "shared:";  ///< CheckpointExtra::shared
inline constexpr const char* kLocal = "local:";    ///< CheckpointExtra::local

/// What of the module is not sharded, as files call it: frozen parameters and buffers.
inline std::vector<std::pair<std::string, at::Tensor>> unsharded(const Model& model) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (size_t f = 0; f < model.frozen.size(); ++f) {
    tensors.emplace_back(kFrozen + model.frozen_names[f], model.frozen[f]);
  }
  for (size_t b = 0; b < model.buffers.size(); ++b) {
    tensors.emplace_back(kBuffer + model.buffer_names[b], model.buffers[b]);
  }
  return tensors;
}

inline bool has_prefix(const std::string& name, const std::string& prefix) {
  return name.rfind(prefix, 0) == 0;
}

}  // namespace zerosched::detail::tensor_name
