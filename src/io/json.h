#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <string>

namespace zerosched::detail {

/// Throws std::runtime_error unless `text` is JSON in which no object has a name twice (one of the two would
/// be lost) and nothing is nested deeper than `max_depth`.
nlohmann::json parse_json(const std::string& text, size_t max_depth = 200);

/// What JSON does not take throws only when it is written.
bool is_utf8(const std::string& text);

}  // namespace zerosched::detail
