#pragma once

#include <string>
#include <vector>

namespace zerosched::detail {

/// For messages: the first few names in quotes, and how many more there are.
inline std::string names_text(const std::vector<std::string>& names) {
  constexpr size_t kMost = 8;
  std::string text;
  for (size_t i = 0; i < names.size() && i < kMost; ++i) text += (i == 0 ? "'" : ", '") + names[i] + "'";
  if (names.size() > kMost) text += " and " + std::to_string(names.size() - kMost) + " more";
  return text;
}

}  // namespace zerosched::detail
