#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// Options by name, numbers and flags alike as double.
using OptionValues = std::vector<std::pair<std::string, double>>;

/// What a parameter group carries from step to step; the same on every rank.
struct GroupState {
  int64_t k = 0;  ///< steps done
  double weight_sum = 0;
  double lr_max = -1;
  double gradient_l1 =
      0;                ///< AdamWScheduleFreePlus: running mean of the gradient's L1 norm, times sqrt(pi/2)
  double y_weight = 0;  ///< 1 - beta1 of the step that made y: y = lerp(x, z, y_weight)
};

}  // namespace zerosched::detail
