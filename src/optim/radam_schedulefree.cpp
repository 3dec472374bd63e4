#include "optim/schedule_free.h"

#include <zerosched/radam_schedulefree.h>

#include <cmath>

namespace zerosched {

std::vector<Option> RAdamScheduleFreeOptions::list() {
  return {{"lr", &lr(), Range::not_negative}, {"beta1", &std::get<0>(betas()), Range::fraction},
      {"beta2", &std::get<1>(betas()), Range::decay}, {"eps", &eps(), Range::not_negative},
      {"weight_decay", &weight_decay(), Range::not_negative}, {"r", &r()},
      {"weight_lr_power", &weight_lr_power()}, {"silent_sgd_phase", &silent_sgd_phase()}};
}

namespace {

// The rectification of RAdam, arXiv 1908.03265, algorithm 2: rho is the length of the simple moving average that v stands
// for; up to 4 its variance is not finite.
detail::PreparedStep prepare(const RAdamScheduleFreeOptions& o, const detail::GroupState& state) {
  const auto [beta1, beta2] = o.betas();
  detail::PreparedStep prepared;
  kernels::StepScalars& s = prepared.scalars;
  detail::use_decays(s, state, 0, beta2);
  const double longest = 2 / (1 - beta2) - 1;
  const auto step = static_cast<double>(state.k + 1);
  const double decayed = std::pow(beta2, step);
  const double rho = longest - 2 * step * decayed / (1 - decayed);
  s.adaptive = rho > 4;
  const double rectification =
      s.adaptive ? std::sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
                 : (o.silent_sgd_phase() ? 0.0 : 1.0);
  s.lr = o.lr() * rectification;
  s.eps = o.eps();
  s.weight_decay = o.weight_decay();
  detail::average(prepared, state, beta1, o.r(), o.weight_lr_power());
  return prepared;
}

}  // namespace

std::unique_ptr<detail::Algorithm> RAdamScheduleFree::make_algorithm() {
  return std::make_unique<detail::AlgorithmOf<RAdamScheduleFreeOptions>>(
      "RAdamScheduleFree", kernels::Rule::adamw_schedule_free, prepare);
}

}  // namespace zerosched
