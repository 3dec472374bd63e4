#pragma once

#include <c10/util/Exception.h>
#include <torch/optim/optimizer.h>

#include <cmath>

namespace zerosched::detail {

/// The options as the type that `optimizer` takes; throws if a group was given another optimizer's options.
template <typename Options>
const Options& options_as(const torch::optim::OptimizerOptions& options, const char* optimizer) {
  const auto* typed = dynamic_cast<const Options*>(&options);
  TORCH_CHECK(typed != nullptr, "a parameter group has options of another optimizer; ", optimizer,
              " takes ", optimizer, "Options.");
  return *typed;
}

inline void check_non_negative(const char* option, double value) {
  TORCH_CHECK(std::isfinite(value) && value >= 0, option, " must be finite and not negative, got ", value,
              ".");
}

}  // namespace zerosched::detail
