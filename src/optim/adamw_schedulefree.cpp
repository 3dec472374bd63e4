#include "optim/adamw_schedulefree.h"

#include "optim/checks.h"

#include <zerosched/adamw_schedulefree.h>

#include <cmath>
#include <memory>
#include <utility>

namespace zerosched {
namespace detail {

const std::vector<StateTensor>& AdamWScheduleFreeAlgorithm::state() const {
  static const std::vector<StateTensor> tensors = {{"z", true}, {"x", true}, {"v", false}};
  return tensors;
}

void AdamWScheduleFreeAlgorithm::check(const torch::optim::OptimizerOptions& options) const {
  const auto& o = options_as<AdamWScheduleFreeOptions>(options, name());
  check_non_negative("lr", o.lr());
  check_fraction("betas: beta1", std::get<0>(o.betas()));
  check_decay("betas: beta2", std::get<1>(o.betas()));
  check_non_negative("eps", o.eps());
  check_non_negative("weight_decay", o.weight_decay());
  TORCH_CHECK(o.warmup_steps() >= 0, "warmup_steps must not be negative, got ", o.warmup_steps(), ".");
  check_finite("r", o.r());
  check_finite("weight_lr_power", o.weight_lr_power());
}

std::vector<OptionField> AdamWScheduleFreeAlgorithm::fields(torch::optim::OptimizerOptions& options) const {
  auto& o = options_as<AdamWScheduleFreeOptions>(options, name());
  return {{"lr", &o.lr()}, {"beta1", &std::get<0>(o.betas())}, {"beta2", &std::get<1>(o.betas())},
      {"eps", &o.eps()}, {"weight_decay", &o.weight_decay()}, {"warmup_steps", &o.warmup_steps()},
      {"r", &o.r()}, {"weight_lr_power", &o.weight_lr_power()}};
}

PreparedStep AdamWScheduleFreeAlgorithm::prepare(
    const torch::optim::OptimizerOptions& options, const GroupState& state) const {
  const auto& o = options_as<AdamWScheduleFreeOptions>(options, name());
  const auto [beta1, beta2] = o.betas();
  PreparedStep prepared;
  kernels::StepScalars& s = prepared.scalars;
  s.lr = o.lr() * warmup(state, o.warmup_steps());
  s.beta2 = beta2;
  s.bias_correction2 = 1 - std::pow(beta2, static_cast<double>(state.k + 1));
  s.eps = o.eps();
  s.weight_decay = o.weight_decay();
  average(prepared, state, beta1, o.r(), o.weight_lr_power());
  return prepared;
}

}  // namespace detail

AdamWScheduleFreeOptions::AdamWScheduleFreeOptions(double lr) : lr_(lr) {}

double AdamWScheduleFreeOptions::get_lr() const { return lr(); }

void AdamWScheduleFreeOptions::set_lr(double lr) { this->lr(lr); }

AdamWScheduleFree::AdamWScheduleFree(Trainable what, std::shared_ptr<Communicator> communicator,
    AdamWScheduleFreeOptions options, ShardingOptions sharding)
    : ShardedOptimizer(std::move(what), std::move(communicator),
          std::make_unique<AdamWScheduleFreeOptions>(std::move(options)), std::move(sharding),
          std::make_unique<detail::AdamWScheduleFreeAlgorithm>()) {}

AdamWScheduleFree::AdamWScheduleFree(const Trainable& module, std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator, AdamWScheduleFreeOptions options, ShardingOptions sharding)
    : AdamWScheduleFree(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
          std::move(sharding)) {}

}  // namespace zerosched
