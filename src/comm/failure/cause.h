#pragma once

#include <zerosched/error.h>

#include <string>
#include <string_view>
#include <vector>

namespace zerosched::detail {

/// Why a communicator has given up: what its ranks tell each other and throw as a CommunicationError.
struct Cause {
  std::string text;
  int rank = -1;
  std::string collective{};
  std::vector<int> missing_ranks{};

  [[noreturn]] void raise() const { throw CommunicationError(text, rank, collective, missing_ranks); }
};

/// As bytes to another rank.
std::string to_bytes(const Cause& cause);
/// Bytes that are not of that form are a text.
Cause parse_cause(std::string_view bytes);

}  // namespace zerosched::detail
