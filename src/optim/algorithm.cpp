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
  TORCH_CHECK(
      values.size() == targets.size(), name(), " has ", targets.size(), " options, not ", values.size(), ".");
  for (size_t i = 0; i < targets.size(); ++i) {
    TORCH_CHECK(values[i].first == targets[i].name, "option ", i, " of ", name(), " is ", targets[i].name,
        ", not ", values[i].first, ".");
  }
  for (size_t i = 0; i < targets.size(); ++i) {
    std::visit(
        [given = values[i].second](auto* value) {
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
