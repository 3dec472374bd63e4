#pragma once

#include <string>
#include <vector>

namespace zerosched::detail {

/// What messages call an optimizer, so that a program with several knows which: "AdamWScheduleFree #2 (of 'conv.weight' and
/// 7 more)", the second that this process has constructed with other ranks.
inline std::string optimizer_name(
    const char* algorithm, int number, const std::vector<std::string>& parameters) {
  std::string name = std::string(algorithm) + " #" + std::to_string(number);
  if (parameters.empty()) return name;
  name += " (of '" + parameters.front() + "'";
  if (parameters.size() > 1) name += " and " + std::to_string(parameters.size() - 1) + " more";
  return name + ")";
}

}  // namespace zerosched::detail
