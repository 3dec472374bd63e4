#include "optim/algorithm.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <cstdlib>
#include <type_traits>

namespace zerosched::detail {

namespace {

// A number that no int64_t has cannot be converted.
void check_are_of_their_types(const std::vector<OptionField>& targets, const std::vector<double>& values) {
  constexpr double kMost = 9007199254740992;  // 2^53: all integers up to it are doubles
  for (size_t i = 0; i < targets.size(); ++i) {
    const double given = values[i];
    const bool is_integer = std::trunc(given) == given && std::abs(given) <= kMost;
    TORCH_CHECK(!std::holds_alternative<int64_t*>(targets[i].value) || is_integer, "option ", targets[i].name,
        " is ", given, ", which is no integer.");
    TORCH_CHECK(!std::holds_alternative<bool*>(targets[i].value) || given == 0 || given == 1, "option ",
        targets[i].name, " is ", given, "; expected 0 or 1.");
  }
}

}  // namespace

OptionValues Algorithm::values(const torch::optim::OptimizerOptions& options) const {
  const auto copy = options.clone();
  OptionValues values;
  for (const OptionField& field : fields(*copy)) {
    values.emplace_back(
        field.name, std::visit([](const auto* value) { return static_cast<double>(*value); }, field.value));
  }
  return values;
}

void Algorithm::assign(torch::optim::OptimizerOptions& options, const OptionValues& values) const {
  const std::vector<OptionField> targets = fields(options);
  std::vector<double> given;
  size_t used = 0;
  for (const OptionField& target : targets) {
    const bool is_there = used < values.size() && values[used].first == target.name;
    TORCH_CHECK(is_there || target.if_absent, "option ", used, " of ", name(), " is ", target.name, ", not ",
        used < values.size() ? values[used].first : "absent", ".");
    given.push_back(is_there ? values[used].second : *target.if_absent);
    if (is_there) ++used;
  }
  TORCH_CHECK(used == values.size(), name(), " has no option ", values[used].first, ".");
  check_are_of_their_types(targets, given);
  for (size_t i = 0; i < targets.size(); ++i) {
    std::visit(
        [given = given[i]](auto* value) {
          using Value = std::remove_pointer_t<decltype(value)>;
          if constexpr (std::is_same_v<Value, bool>) {
            *value = given != 0;
          } else {
            *value = static_cast<Value>(given);
          }
        },
        targets[i].value);
  }
}

}  // namespace zerosched::detail
