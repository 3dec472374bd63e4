#pragma once

#include <c10/util/Exception.h>
#include <torch/optim/optimizer.h>

#include <cmath>

namespace zerosched::detail {

/// The options as the type that `optimizer` takes; throws if a group was given another optimizer's options.
template <typename Options>
const Options& options_as(const torch::optim::OptimizerOptions& options, const char* optimizer) {
  const auto* typed = dynamic_cast<const Options*>(&options);
  TORCH_CHECK(typed != nullptr, "a parameter group has options of another optimizer; ", optimizer, " takes ",
      optimizer, "Options.");
  return *typed;
}

template <typename Options>
Options& options_as(torch::optim::OptimizerOptions& options, const char* optimizer) {
  return const_cast<Options&>(
      options_as<Options>(static_cast<const torch::optim::OptimizerOptions&>(options), optimizer));
}

inline void check_non_negative(const char* option, double value) {
  TORCH_CHECK(
      std::isfinite(value) && value >= 0, option, " must be finite and not negative, got ", value, ".");
}

inline void check_finite(const char* option, double value) {
  TORCH_CHECK(std::isfinite(value), option, " must be finite, got ", value, ".");
}

/// For a weight in a mean, both ends included.
inline void check_fraction(const char* option, double value) {
  TORCH_CHECK(value >= 0 && value <= 1, option, " must be in [0, 1], got ", value, ".");
}

/// A rate of decay: 1 would never forget.
inline void check_decay(const char* option, double value) {
  TORCH_CHECK(value >= 0 && value < 1, option, " must be in [0, 1), got ", value, ".");
}

}  // namespace zerosched::detail
