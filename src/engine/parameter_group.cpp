#include <zerosched/parameter_group.h>

namespace zerosched {
namespace {

NamedParameters pairs_of(const torch::OrderedDict<std::string, at::Tensor>& named_parameters) {
  NamedParameters pairs;
  pairs.reserve(named_parameters.size());
  for (const auto& item : named_parameters) pairs.emplace_back(item.key(), item.value());
  return pairs;
}

}  // namespace

ParameterGroup::ParameterGroup(NamedParameters named_parameters)
    : named_parameters_(std::move(named_parameters)) {}

ParameterGroup::ParameterGroup(
    NamedParameters named_parameters, const torch::optim::OptimizerOptions& options)
    : named_parameters_(std::move(named_parameters)), options_(options.clone()) {}

ParameterGroup::ParameterGroup(const torch::OrderedDict<std::string, at::Tensor>& named_parameters)
    : ParameterGroup(pairs_of(named_parameters)) {}

ParameterGroup::ParameterGroup(const torch::OrderedDict<std::string, at::Tensor>& named_parameters,
    const torch::optim::OptimizerOptions& options)
    : ParameterGroup(pairs_of(named_parameters), options) {}

ParameterGroup::ParameterGroup(const ParameterGroup& other)
    : named_parameters_(other.named_parameters_),
      options_(other.options_ ? other.options_->clone() : nullptr),
      clamp_low_(other.clamp_low_),
      clamp_high_(other.clamp_high_) {}

ParameterGroup& ParameterGroup::operator=(const ParameterGroup& other) {
  if (this != &other) *this = ParameterGroup(other);
  return *this;
}

ParameterGroup& ParameterGroup::clamp(double low, double high) {
  clamp_low_ = low;
  clamp_high_ = high;
  return *this;
}

}  // namespace zerosched
