#include "io/piece_name.h"

#include <charconv>

namespace zerosched::detail {

namespace {

bool parse_number(const char*& at, const char* end, int64_t& number) {
  if (at == end || *at < '0' || *at > '9') return false;  // from_chars would take a sign
  const auto [stop, error] = std::from_chars(at, end, number);
  at = stop;
  return error == std::errc();
}

}  // namespace

std::string to_text(const PieceName& name) {
  return name.state + ':' + std::to_string(name.begin) + '-' + std::to_string(name.end) + ':' +
         name.parameter;
}

std::optional<PieceName> parse_piece_name(const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos || colon == 0) return std::nullopt;
  PieceName name;
  name.state = text.substr(0, colon);
  const char* at = text.data() + colon + 1;
  const char* end = text.data() + text.size();
  if (!parse_number(at, end, name.begin) || at == end || *at++ != '-') return std::nullopt;
  if (!parse_number(at, end, name.end) || at == end || *at++ != ':') return std::nullopt;
  if (name.begin >= name.end) return std::nullopt;
  name.parameter.assign(at, end);
  return name;
}

}  // namespace zerosched::detail
