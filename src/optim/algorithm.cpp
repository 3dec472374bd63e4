#include "optim/algorithm.h"

#include <c10/util/Exception.h>

#include <type_traits>

namespace zerosched::detail {

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
