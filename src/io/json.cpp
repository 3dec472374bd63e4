#include "io/json.h"

#include <set>
#include <stdexcept>
#include <vector>

namespace zerosched::detail {

nlohmann::json parse_json(const std::string& text, size_t max_depth) {
  using nlohmann::json;
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (static_cast<size_t>(depth) > max_depth) throw std::runtime_error("its JSON is nested too deeply");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw std::runtime_error("the name '" + parsed.get<std::string>() + "' appears twice in its JSON");
    }
    return true;
  };
  json parsed = json::parse(text, watch, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) throw std::runtime_error("it is not JSON");
  return parsed;
}

bool is_utf8(const std::string& text) {
  try {
    nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

}  // namespace zerosched::detail
