#include <zerosched/listed_options.h>

#include "base/check.h"

#include <cmath>
#include <type_traits>

namespace zerosched {

namespace {

double number_in(const Option& option) {
  return std::visit([](const auto* value) { return static_cast<double>(*value); }, option.value);
}

// list() gives places to write to, which is not done here.
std::vector<Option> list_of(const ListedOptions& options) {
  return const_cast<ListedOptions&>(options).list();  // NOLINT(cppcoreguidelines-pro-type-const-cast)
}

const char* expected(Range range) {
  switch (range) {
    case Range::finite:
      return "must be finite";
    case Range::not_negative:
      return "must be finite and not negative";
    case Range::fraction:
      return "must be in [0, 1]";
    case Range::decay:
      return "must be in [0, 1)";
  }
  return "";
}

bool is_in(Range range, double value) {
  if (!std::isfinite(value)) return false;
  if (range == Range::finite) return true;
  if (value < 0) return false;
  return range == Range::not_negative || value < 1 || (range == Range::fraction && value == 1);
}

}  // namespace

std::vector<std::pair<std::string, double>> ListedOptions::values() const {
  std::vector<std::pair<std::string, double>> values;
  for (const Option& option : list_of(*this)) values.emplace_back(option.name, number_in(option));
  return values;
}

bool ListedOptions::set(const std::string& name, double value) {
  for (const Option& option : list()) {
    if (name != option.name) continue;
    std::visit(
        [value](auto* place) {
          using Value = std::remove_pointer_t<decltype(place)>;
          if constexpr (std::is_same_v<Value, bool>) {
            *place = value != 0;
          } else {
            *place = static_cast<Value>(value);
          }
        },
        option.value);
    return true;
  }
  return false;
}

void ListedOptions::check() const {
  for (const Option& option : list_of(*this)) {
    const double value = number_in(option);
    ZEROSCHED_CHECK(std::holds_alternative<bool*>(option.value) || is_in(option.range, value), option.name,
        ' ', expected(option.range), ", got ", value, ".");
  }
  check_together();
}

double ListedOptions::get_lr() const {
  for (const auto& [name, value] : values()) {
    if (name == "lr") return value;
  }
  return 0;
}

void ListedOptions::set_lr(double lr) { set("lr", lr); }

}  // namespace zerosched
