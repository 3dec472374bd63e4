#include "optim/adamw_schedulefree_plus.h"

#include "optim/checks.h"

#include <zerosched/adamw_schedulefree_plus.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

namespace zerosched {
namespace detail {
namespace {

/// sqrt(pi/2): of normal numbers the root mean square, where the mean magnitude is 1.
constexpr double kL2OfL1 = 1.2533141373155002512;

}  // namespace

const std::vector<StateTensor>& AdamWScheduleFreePlusAlgorithm::state() const {
  static const std::vector<StateTensor> tensors = {{"z", true}, {"x", true}, {"m", false}, {"v", false}};
  return tensors;
}

void AdamWScheduleFreePlusAlgorithm::check(const torch::optim::OptimizerOptions& options) const {
  const auto& o = options_as<AdamWScheduleFreePlusOptions>(options, name());
  check_non_negative("lr", o.lr());
  check_decay("betas: beta1", std::get<0>(o.betas()));
  check_decay("betas: beta2", std::get<1>(o.betas()));
  check_fraction("sf_beta1", o.sf_beta1());
  check_fraction("sf_beta1_max", o.sf_beta1_max());
  TORCH_CHECK(o.sf_beta1_anneal_steps() >= 0, "sf_beta1_anneal_steps must not be negative, got ",
      o.sf_beta1_anneal_steps(), ".");
  TORCH_CHECK(o.sf_beta1_anneal_steps() == 0 || (o.sf_beta1() < 1 && o.sf_beta1_max() < 1),
      "sf_beta1 and sf_beta1_max must be below 1 to go from one to the other in the logarithm of 1 minus "
      "them, got ",
      o.sf_beta1(), " and ", o.sf_beta1_max(), ".");
  check_non_negative("eps", o.eps());
  check_non_negative("weight_decay", o.weight_decay());
  check_finite("r", o.r());
  check_finite("weight_lr_power", o.weight_lr_power());
  check_decay("polyak_beta", o.polyak_beta());
  TORCH_CHECK(o.c_warmup() >= 0, "c_warmup must not be negative, got ", o.c_warmup(), ".");
}

std::vector<OptionField> AdamWScheduleFreePlusAlgorithm::fields(
    torch::optim::OptimizerOptions& options) const {
  auto& o = options_as<AdamWScheduleFreePlusOptions>(options, name());
  return {{"lr", &o.lr()}, {"beta1", &std::get<0>(o.betas())}, {"beta2", &std::get<1>(o.betas())},
      {"sf_beta1", &o.sf_beta1()}, {"sf_beta1_max", &o.sf_beta1_max()},
      {"sf_beta1_anneal_steps", &o.sf_beta1_anneal_steps()}, {"eps", &o.eps()},
      {"weight_decay", &o.weight_decay()}, {"r", &o.r()}, {"weight_lr_power", &o.weight_lr_power()},
      {"polyak_beta", &o.polyak_beta()}, {"c_warmup", &o.c_warmup()}};
}

double AdamWScheduleFreePlusAlgorithm::inner_product_weight(
    const torch::optim::OptimizerOptions& options, const GroupState& state) const {
  const auto& o = options_as<AdamWScheduleFreePlusOptions>(options, name());
  if (o.sf_beta1_anneal_steps() == 0) return o.sf_beta1();
  const double done =
      std::min(1.0, static_cast<double>(state.k) / static_cast<double>(o.sf_beta1_anneal_steps()));
  return 1 - std::exp((1 - done) * std::log(1 - o.sf_beta1()) + done * std::log(1 - o.sf_beta1_max()));
}

PreparedStep AdamWScheduleFreePlusAlgorithm::prepare(
    const torch::optim::OptimizerOptions& options, const GroupState& state) const {
  return prepare_by_loss(options, state, {});
}

PreparedStep AdamWScheduleFreePlusAlgorithm::prepare_by_loss(const torch::optim::OptimizerOptions& options,
    const GroupState& state, const LossMeasure& measure) const {
  const auto& o = options_as<AdamWScheduleFreePlusOptions>(options, name());
  const auto step = static_cast<double>(state.k + 1);
  const double gradient_l1 =
      o.polyak_beta() * state.gradient_l1 + (1 - o.polyak_beta()) * measure.gradient_l1 * kL2OfL1;
  const double corrected = gradient_l1 / (1 - std::pow(o.polyak_beta(), step));
  // A NaN of either stays one.
  const double above = measure.loss + measure.inner_product;
  const double polyak = above <= 0 || corrected == 0 ? 0 : above / corrected;

  PreparedStep prepared;
  kernels::StepScalars& s = prepared.scalars;
  s.lr = std::max(o.lr(), o.eps()) * polyak;
  s.beta1 = std::get<0>(o.betas());
  s.beta2 = std::get<1>(o.betas());
  s.bias_correction1 = 1 - std::pow(s.beta1, step);
  s.bias_correction2 = 1 - std::pow(s.beta2, step);
  s.eps = o.eps();
  s.weight_decay = s.lr * o.weight_decay();  // which the rule multiplies with lr again
  GroupState before = state;
  before.lr_max = std::max(before.lr_max, o.eps());
  average(prepared, before, inner_product_weight(options, state), o.r(), o.weight_lr_power());
  if (state.k < o.c_warmup()) {
    s.c = 1;
    prepared.next.weight_sum = state.weight_sum;
  }
  prepared.next.gradient_l1 = gradient_l1;
  return prepared;
}

}  // namespace detail

AdamWScheduleFreePlusOptions::AdamWScheduleFreePlusOptions(double lr) : lr_(lr) {}

double AdamWScheduleFreePlusOptions::get_lr() const { return lr(); }

void AdamWScheduleFreePlusOptions::set_lr(double lr) { this->lr(lr); }

AdamWScheduleFreePlus::AdamWScheduleFreePlus(Trainable what, std::shared_ptr<Communicator> communicator,
    AdamWScheduleFreePlusOptions options, ShardingOptions sharding)
    : ShardedOptimizer(std::move(what), std::move(communicator),
          std::make_unique<AdamWScheduleFreePlusOptions>(std::move(options)), std::move(sharding),
          std::make_unique<detail::AdamWScheduleFreePlusAlgorithm>()) {}

AdamWScheduleFreePlus::AdamWScheduleFreePlus(const Trainable& module, std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator, AdamWScheduleFreePlusOptions options,
    ShardingOptions sharding)
    : AdamWScheduleFreePlus(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
          std::move(sharding)) {}

void AdamWScheduleFreePlus::step(const torch::Tensor& loss) {
  set_loss(loss);
  ShardedOptimizer::step();
}

void AdamWScheduleFreePlus::set_loss(const torch::Tensor& loss) { give_loss(loss); }

}  // namespace zerosched
