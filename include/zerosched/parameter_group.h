#pragma once

#include <zerosched/export.h>

#include <torch/optim/optimizer.h>
#include <torch/ordered_dict.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace zerosched {

/// Tensors by name, in an order.
using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// Parameters with names, and the options they are trained with (the optimizer's own where none are given).
/// Names are those that full_state(), checkpoints and errors call parameters by, so they must be unique over all
/// groups of an optimizer. A ParameterGroup does not look at what it is given: the optimizer's constructor does.
class ZEROSCHED_EXPORT ParameterGroup {
 public:
  /// With the optimizer's own options.
  explicit ParameterGroup(NamedParameters named_parameters);
  /// With a copy of `options`, which must be of the optimizer's options class.
  ParameterGroup(NamedParameters named_parameters, const torch::optim::OptimizerOptions& options);
  /// For `module->named_parameters()`.
  explicit ParameterGroup(const torch::OrderedDict<std::string, at::Tensor>& named_parameters);
  /// The same with options.
  ParameterGroup(const torch::OrderedDict<std::string, at::Tensor>& named_parameters,
      const torch::optim::OptimizerOptions& options);

  /// @{
  /// Copies share the parameters, and have options of their own.
  ParameterGroup(const ParameterGroup& other);
  ParameterGroup(ParameterGroup&&) noexcept = default;
  ParameterGroup& operator=(const ParameterGroup& other);
  ParameterGroup& operator=(ParameterGroup&&) noexcept = default;
  ~ParameterGroup() = default;
  /// @}

  /// In the order they were given in.
  const NamedParameters& named_parameters() const { return named_parameters_; }
  /// Whether options were given.
  bool has_options() const { return options_ != nullptr; }
  /// Those that were given. Only if has_options().
  const torch::optim::OptimizerOptions& options() const { return *options_; }

 private:
  NamedParameters named_parameters_;
  std::unique_ptr<torch::optim::OptimizerOptions> options_;
};

}  // namespace zerosched
