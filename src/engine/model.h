#pragma once

#include "device/runtime.h"
#include "layout/layout.h"
#include "optim/algorithm.h"

#include <zerosched/sharding_options.h>
#include <zerosched/trainable.h>

#include <ATen/core/Tensor.h>

#include <limits>
#include <string>
#include <vector>

namespace zerosched::detail {

/// A second name of a parameter.
struct TiedName {
  std::string name;
  std::string first_name;  ///< the one it is kept under
};

/// The box that the iterate z of a parameter group is kept in.
struct ClampBounds {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
};

/// What an optimizer was given, sorted: what it trains, and what it only keeps.
struct Model {
  std::vector<at::Tensor> parameters;  ///< require gradients, each once, in registration order
  std::vector<std::string> names;
  std::vector<ParameterSpec> specs;
  std::vector<at::Tensor> frozen;  ///< parameters without gradients, and those of the module in no group
  std::vector<std::string> frozen_names;
  std::vector<bool> frozen_for_good;  ///< per frozen parameter: it must not require a gradient later
  std::vector<at::Tensor> buffers;    ///< of the module
  std::vector<std::string> buffer_names;
  std::vector<TiedName> tied;
  std::vector<ClampBounds> clamps;  ///< by group
  at::Device device = at::kCPU;     ///< of all trainable parameters
};

/// Sorts and checks, locally: throws at the first thing that cannot be trained or kept, naming it.
/// A parameter that appears twice in a group (tied weights) is taken once, under its first name; with a module
/// that is the module's first.
Model inspect(const Trainable& what, const device::Runtime& runtime);

/// `name` and what else the parameter that is kept under it is called.
std::vector<std::string> names_of(const Model& model, const std::string& name);

/// Which frozen parameter requires a gradient by now, and what to do; empty if none.
std::string unfrozen(const Model& model);

/// Checks options against each other and the algorithm, locally; throws naming the option.
void check_options(const std::vector<ParameterGroup>& groups, const torch::optim::OptimizerOptions& defaults,
    const ShardingOptions& sharding, const Algorithm& algorithm);

/// Everything that must be the same on every rank, a line each, for comparison.
std::vector<std::string> describe(const Model& model, const std::vector<ParameterGroup>& groups,
    const torch::optim::OptimizerOptions& defaults, const ShardingOptions& sharding,
    const Algorithm& algorithm);

}  // namespace zerosched::detail
