#pragma once

#include <string>

// How tensors are called in a checkpoint's files. Pieces of state are called as PieceName says; exported
// files have the module's own names.
namespace zerosched::detail::tensor_name {

inline constexpr const char* kFrozen = "frozen:";
inline constexpr const char* kBuffer = "buffer:";
inline constexpr const char* kShared = "shared:";  ///< CheckpointExtra::shared
inline constexpr const char* kLocal = "local:";    ///< CheckpointExtra::local

inline bool has_prefix(const std::string& name, const std::string& prefix) {
  return name.rfind(prefix, 0) == 0;
}

}  // namespace zerosched::detail::tensor_name
