#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace zerosched::detail {

/// What a tensor in a rank's file is: elements [begin, end) of state tensor `state` of a parameter, counted
/// in the order in which the parameter lies in memory. Written "z:0-4096:blocks.3.fc1.weight".
struct PieceName {
  std::string state;
  int64_t begin = 0, end = 0;
  std::string parameter;
};

std::string to_text(const PieceName& name);
/// Nothing if `text` does not name a piece.
std::optional<PieceName> parse_piece_name(const std::string& text);

}  // namespace zerosched::detail
