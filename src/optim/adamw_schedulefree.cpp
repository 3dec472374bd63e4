#include "optim/adamw_schedulefree.h"

#include "base/check.h"

#include <algorithm>

namespace zerosched {

std::vector<Option> AdamWScheduleFreeOptions::list() {
  return {{"lr", &lr(), Range::not_negative}, {"beta1", &std::get<0>(betas()), Range::fraction},
      {"beta2", &std::get<1>(betas()), Range::decay}, {"eps", &eps(), Range::not_negative},
      {"weight_decay", &weight_decay(), Range::not_negative},
      {"warmup_steps", &warmup_steps(), Range::not_negative}, {"r", &r()},
      {"weight_lr_power", &weight_lr_power()}, {"refinement", &refinement(), Range::not_negative, 0.0},
      {"inner_momentum", &inner_momentum(), Range::decay, 0.0}};
}

void AdamWScheduleFreeOptions::check_together() const {
  ZEROSCHED_CHECK(refinement() == 0 || std::get<0>(betas()) < 1,
      "refinement multiplies the weight of z in the average with 1 - beta1, which is 0, so x would never "
      "move. Choose a "
      "beta1 below 1.");
}

namespace detail {

void AdamWScheduleFreeAlgorithm::settle(const std::vector<const Options*>& options) {
  const bool any =
      std::any_of(options.begin(), options.end(), [](const auto* o) { return of(*o).inner_momentum() > 0; });
  if (any) use_rule(kernels::Rule::adamw_schedule_free_momentum);
  is_settled_ = true;
}

void AdamWScheduleFreeAlgorithm::check(const Options& options) const {
  Algorithm::check(options);
  const double momentum = of(options).inner_momentum();
  ZEROSCHED_CHECK(momentum == 0 || !is_settled_ || rule() == kernels::Rule::adamw_schedule_free_momentum,
      "inner_momentum is ", momentum,
      ", but was 0 in every parameter group when the optimizer was constructed, which has no m therefore. "
      "Give it to "
      "the options then.");
}

PreparedStep prepare_adamw(const AdamWScheduleFreeOptions& o, const GroupState& state) {
  PreparedStep prepared;
  kernels::StepScalars& s = prepared.scalars;
  s.lr = o.lr() * warmup(state, o.warmup_steps());
  use_decays(s, state, o.inner_momentum(), std::get<1>(o.betas()));
  s.eps = o.eps();
  s.weight_decay = o.weight_decay();
  return prepared;
}

void average_by(const AdamWScheduleFreeOptions& o, PreparedStep& prepared, const GroupState& state) {
  const double beta1 = std::get<0>(o.betas());
  average(prepared, state, beta1, o.r(), o.weight_lr_power(),
      o.refinement() == 0 ? 1 : (1 - beta1) * o.refinement());
}

}  // namespace detail

namespace {

detail::PreparedStep prepare(const AdamWScheduleFreeOptions& o, const detail::GroupState& state) {
  detail::PreparedStep prepared = detail::prepare_adamw(o, state);
  detail::average_by(o, prepared, state);
  return prepared;
}

}  // namespace

std::unique_ptr<detail::Algorithm> AdamWScheduleFree::make_algorithm() {
  return std::make_unique<detail::AdamWScheduleFreeAlgorithm>("AdamWScheduleFree", prepare);
}

}  // namespace zerosched
