#pragma once

#include <zerosched/export.h>

#include <torch/optim/optimizer.h>
#include <torch/ordered_dict.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace zerosched {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// Parameters with names, and the options they are trained with (the optimizer's own where none are given).
class ZEROSCHED_EXPORT ParameterGroup {
 public:
  explicit ParameterGroup(NamedParameters named_parameters);
  ParameterGroup(NamedParameters named_parameters, const torch::optim::OptimizerOptions& options);
  /// For `module->named_parameters()`.
  explicit ParameterGroup(const torch::OrderedDict<std::string, at::Tensor>& named_parameters);
  ParameterGroup(
      const torch::OrderedDict<std::string, at::Tensor>& named_parameters,
      const torch::optim::OptimizerOptions& options);

  ParameterGroup(const ParameterGroup& other);
  ParameterGroup(ParameterGroup&&) noexcept = default;
  ParameterGroup& operator=(const ParameterGroup& other);
  ParameterGroup& operator=(ParameterGroup&&) noexcept = default;
  ~ParameterGroup() = default;

  const NamedParameters& named_parameters() const { return named_parameters_; }
  bool has_options() const { return options_ != nullptr; }
  const torch::optim::OptimizerOptions& options() const { return *options_; }

 private:
  NamedParameters named_parameters_;
  std::unique_ptr<torch::optim::OptimizerOptions> options_;
};

}  // namespace zerosched
