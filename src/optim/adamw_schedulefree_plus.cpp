#include "base/check.h"
#include "optim/schedule_free.h"

#include <zerosched/adamw_schedulefree_plus.h>

#include <algorithm>
#include <cmath>

namespace zerosched {

std::vector<Option> AdamWScheduleFreePlusOptions::list() {
  return {{"lr", &lr(), Range::not_negative}, {"beta1", &std::get<0>(betas()), Range::decay},
      {"beta2", &std::get<1>(betas()), Range::decay}, {"sf_beta1", &sf_beta1(), Range::fraction},
      {"sf_beta1_max", &sf_beta1_max(), Range::fraction},
      {"sf_beta1_anneal_steps", &sf_beta1_anneal_steps(), Range::not_negative},
      {"eps", &eps(), Range::not_negative}, {"weight_decay", &weight_decay(), Range::not_negative},
      {"r", &r()}, {"weight_lr_power", &weight_lr_power()}, {"polyak_beta", &polyak_beta(), Range::decay},
      {"c_warmup", &c_warmup(), Range::not_negative}};
}

void AdamWScheduleFreePlusOptions::check_together() const {
  ZEROSCHED_CHECK(sf_beta1_anneal_steps() == 0 || (sf_beta1() < 1 && sf_beta1_max() < 1),
      "sf_beta1 and sf_beta1_max must be below 1 to go from one to the other in the logarithm of 1 minus "
      "them, got ",
      sf_beta1(), " and ", sf_beta1_max(), ".");
}

namespace {

/// sqrt(pi/2): of normal numbers the root mean square, where the mean magnitude is 1.
constexpr double kL2OfL1 = 1.2533141373155002512;

double weight_of_x(const AdamWScheduleFreePlusOptions& o, const detail::GroupState& state) {
  if (o.sf_beta1_anneal_steps() == 0) return o.sf_beta1();
  const double done =
      std::min(1.0, static_cast<double>(state.k) / static_cast<double>(o.sf_beta1_anneal_steps()));
  return 1 - std::exp((1 - done) * std::log(1 - o.sf_beta1()) + done * std::log(1 - o.sf_beta1_max()));
}

detail::PreparedStep prepare(const AdamWScheduleFreePlusOptions& o, const detail::GroupState& before,
    const detail::LossMeasure& measure) {
  const double gradient_l1 =
      o.polyak_beta() * before.gradient_l1 + (1 - o.polyak_beta()) * measure.gradient_l1 * kL2OfL1;
  const double corrected = gradient_l1 / (1 - std::pow(o.polyak_beta(), static_cast<double>(before.k + 1)));
  // A NaN of either stays one.
  const double above = measure.loss + measure.inner_product;
  const double polyak = above <= 0 || corrected == 0 ? 0 : above / corrected;

  detail::PreparedStep prepared;
  kernels::StepScalars& s = prepared.scalars;
  s.lr = std::max(o.lr(), o.eps()) * polyak;
  detail::use_decays(s, before, std::get<0>(o.betas()), std::get<1>(o.betas()));
  s.eps = o.eps();
  s.weight_decay = s.lr * o.weight_decay();  // which the rule multiplies with lr again
  detail::GroupState state = before;
  state.lr_max = std::max(state.lr_max, o.eps());
  detail::average(prepared, state, weight_of_x(o, state), o.r(), o.weight_lr_power());
  if (state.k < o.c_warmup()) {
    s.c = 1;
    prepared.next.weight_sum = state.weight_sum;
  }
  prepared.next.gradient_l1 = gradient_l1;
  return prepared;
}

// Of a loss of 0, which moves nothing.
detail::PreparedStep prepare(const AdamWScheduleFreePlusOptions& o, const detail::GroupState& state) {
  return prepare(o, state, {});
}

class AdamWScheduleFreePlusAlgorithm final : public detail::AlgorithmOf<AdamWScheduleFreePlusOptions> {
 public:
  AdamWScheduleFreePlusAlgorithm()
      : AlgorithmOf(
            "AdamWScheduleFreePlus", kernels::Rule::adamw_schedule_free_momentum, zerosched::prepare) {}

  bool takes_loss() const override { return true; }
  double inner_product_weight(const Options& options, const detail::GroupState& state) const override {
    return weight_of_x(of(options), state);
  }
  detail::PreparedStep prepare_by_loss(const Options& options, const detail::GroupState& state,
      const detail::LossMeasure& measure) const override {
    return zerosched::prepare(of(options), state, measure);
  }
};

}  // namespace

std::unique_ptr<detail::Algorithm> AdamWScheduleFreePlus::make_algorithm() {
  return std::make_unique<AdamWScheduleFreePlusAlgorithm>();
}

void AdamWScheduleFreePlus::step(const torch::Tensor& loss) {
  set_loss(loss);
  ShardedOptimizer::step();
}

void AdamWScheduleFreePlus::set_loss(const torch::Tensor& loss) { give_loss(loss); }

}  // namespace zerosched
