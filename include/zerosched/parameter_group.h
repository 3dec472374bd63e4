#pragma once

#include <zerosched/export.h>

#include <torch/optim/optimizer.h>
#include <torch/ordered_dict.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace zerosched {

/// Tensors by name, in an order.
using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// Parameters with names, and the options they are trained with (the optimizer's own where none are given).
/// Names are those that full_state(), checkpoints and errors call parameters by, so they must be unique over all
/// groups of an optimizer; one that is given the module as well uses the module's names instead. A
/// ParameterGroup does not look at what it is given: the optimizer's constructor does.
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

  /// Keeps every element of the group in [low, high]: after each step the iterate z (x itself for optimizers
  /// without Schedule-Free) is put to the nearer end if it left the box, and so are the values that training
  /// starts from. Averages x and y of what is in the box are in it as well, but for rounding. Either end may be
  /// infinite, as both are by default. The same on every rank; not kept in checkpoints. Returns this group.
  ParameterGroup& clamp(double low, double high);

  /// The ends of the box, infinite unless clamp() was called.
  double clamp_low() const { return clamp_low_; }
  /// As above.
  double clamp_high() const { return clamp_high_; }

  /// In the order they were given in.
  const NamedParameters& named_parameters() const { return named_parameters_; }
  /// Whether options were given.
  bool has_options() const { return options_ != nullptr; }
  /// Those that were given. Only if has_options().
  const torch::optim::OptimizerOptions& options() const { return *options_; }

 private:
  NamedParameters named_parameters_;
  std::unique_ptr<torch::optim::OptimizerOptions> options_;
  double clamp_low_ = -std::numeric_limits<double>::infinity();
  double clamp_high_ = std::numeric_limits<double>::infinity();
};

}  // namespace zerosched
