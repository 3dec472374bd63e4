#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace zerosched::detail {

/// "rank 3", or "ranks 0, 3 and 5", as part of a sentence.
inline std::string ranks_text(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

}  // namespace zerosched::detail
