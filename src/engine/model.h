#pragma once

#include "device/runtime.h"
#include "layout/layout.h"
#include "optim/algorithm.h"

#include <zerosched/communicator.h>
#include <zerosched/parameter_group.h>
#include <zerosched/sharding_options.h>

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace zerosched::detail {

/// A second name of a parameter.
struct TiedName {
  std::string name;
  std::string first_name;  ///< the one it is kept under
};

/// What an optimizer was given, sorted: what it trains, and what it only keeps equal on all ranks.
struct Model {
  std::vector<at::Tensor> parameters;  ///< require gradients, each once, in registration order
  std::vector<std::string> names;
  std::vector<ParameterSpec> specs;
  std::vector<at::Tensor> frozen;  ///< parameters without gradients
  std::vector<std::string> frozen_names;
  std::vector<at::Tensor> buffers;  ///< of the module
  std::vector<std::string> buffer_names;
  std::vector<TiedName> tied;
  at::Device device = at::kCPU;  ///< of all trainable parameters
};

/// Sorts and checks, locally: throws at the first thing that cannot be trained, naming it.
/// A parameter that appears twice in a group (tied weights) is taken once, under its first name.
Model inspect(const std::vector<ParameterGroup>& groups, const NamedParameters& buffers,
    const device::Runtime& runtime);

/// `name` and what else the parameter that is kept under it is called.
std::vector<std::string> names_of(const Model& model, const std::string& name);

/// Checks options against each other and the algorithm, locally; throws naming the option.
void check_options(const std::vector<ParameterGroup>& groups, const torch::optim::OptimizerOptions& defaults,
    const ShardingOptions& sharding, const Algorithm& algorithm);

/// Everything that must be the same on every rank, a line each, for comparison.
std::vector<std::string> describe(const Model& model, const std::vector<ParameterGroup>& groups,
    const torch::optim::OptimizerOptions& defaults, const ShardingOptions& sharding,
    const Algorithm& algorithm);

/// Throws on every rank if `lines` differ between ranks, with the first difference. Collective.
void check_same_on_all_ranks(Communicator& communicator, const std::vector<std::string>& lines);

/// Rank 0's values into `tensors` of any dtype and layout. Collective.
void broadcast_values(Communicator& communicator, const std::vector<at::Tensor>& tensors);

/// Throws on every rank if the bytes of `tensors` differ between ranks. Collective.
void check_same_values(Communicator& communicator, const std::vector<at::Tensor>& tensors);

}  // namespace zerosched::detail
