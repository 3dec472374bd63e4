#include "optim/adamw_schedulefree.h"

#include "optim/checks.h"

#include <zerosched/adamw_schedulefree.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

namespace zerosched {
namespace detail {

const std::vector<StateTensor>& AdamWScheduleFreeAlgorithm::state() const {
  static const std::vector<StateTensor> plain = {{"z", true}, {"x", true}, {"v", false}};
  static const std::vector<StateTensor> with_momentum = {
      {"z", true}, {"x", true}, {"m", false}, {"v", false}};
  return has_momentum_ ? with_momentum : plain;
}

void AdamWScheduleFreeAlgorithm::settle(const std::vector<const torch::optim::OptimizerOptions*>& options) {
  has_momentum_ = std::any_of(options.begin(), options.end(), [&](const auto* group) {
    return options_as<AdamWScheduleFreeOptions>(*group, name()).inner_momentum() > 0;
  });
  is_settled_ = true;
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
  check_non_negative("refinement", o.refinement());
  TORCH_CHECK(o.refinement() == 0 || std::get<0>(o.betas()) < 1,
      "refinement multiplies the weight of z in the average with 1 - beta1, which is 0, so x would never "
      "move. Choose a "
      "beta1 below 1.");
  check_decay("inner_momentum", o.inner_momentum());
  TORCH_CHECK(o.inner_momentum() == 0 || has_momentum_ || !is_settled_, "inner_momentum is ",
      o.inner_momentum(),
      ", but was 0 in every parameter group when the optimizer was constructed, which has no m therefore. "
      "Give it to "
      "the options then.");
}

std::vector<OptionField> AdamWScheduleFreeAlgorithm::fields(torch::optim::OptimizerOptions& options) const {
  auto& o = options_as<AdamWScheduleFreeOptions>(options, name());
  return {{"lr", &o.lr()}, {"beta1", &std::get<0>(o.betas())}, {"beta2", &std::get<1>(o.betas())},
      {"eps", &o.eps()}, {"weight_decay", &o.weight_decay()}, {"warmup_steps", &o.warmup_steps()},
      {"r", &o.r()}, {"weight_lr_power", &o.weight_lr_power()}, {"refinement", &o.refinement(), 0.0},
      {"inner_momentum", &o.inner_momentum(), 0.0}};
}

PreparedStep AdamWScheduleFreeAlgorithm::prepare(
    const torch::optim::OptimizerOptions& options, const GroupState& state) const {
  const auto& o = options_as<AdamWScheduleFreeOptions>(options, name());
  const auto step = static_cast<double>(state.k + 1);
  PreparedStep prepared;
  kernels::StepScalars& s = prepared.scalars;
  s.lr = o.lr() * warmup(state, o.warmup_steps());
  s.beta1 = o.inner_momentum();
  s.beta2 = std::get<1>(o.betas());
  s.bias_correction1 = 1 - std::pow(s.beta1, step);
  s.bias_correction2 = 1 - std::pow(s.beta2, step);
  s.eps = o.eps();
  s.weight_decay = o.weight_decay();
  average_by(options, prepared, state);
  return prepared;
}

void AdamWScheduleFreeAlgorithm::average_by(
    const torch::optim::OptimizerOptions& options, PreparedStep& prepared, const GroupState& state) {
  const auto& o = static_cast<const AdamWScheduleFreeOptions&>(options);
  const double beta1 = std::get<0>(o.betas());
  average(prepared, state, beta1, o.r(), o.weight_lr_power(),
      o.refinement() == 0 ? 1 : (1 - beta1) * o.refinement());
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
