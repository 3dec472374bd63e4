#include "optim/schedule_free.h"

#include <zerosched/gpa_adamw.h>

namespace zerosched {

std::vector<Option> GPAAdamWOptions::list() {
  return {{"lr", &lr(), Range::not_negative}, {"beta1", &std::get<0>(betas()), Range::decay},
      {"beta2", &std::get<1>(betas()), Range::decay}, {"eps", &eps(), Range::not_negative},
      {"weight_decay", &weight_decay(), Range::not_negative},
      {"train_interp_coeff", &train_interp_coeff(), Range::fraction},
      {"eval_interp_coeff", &eval_interp_coeff(), Range::decay},
      {"warmup_steps", &warmup_steps(), Range::not_negative}};
}

namespace {

detail::PreparedStep prepare(const GPAAdamWOptions& o, const detail::GroupState& state) {
  detail::PreparedStep prepared{{}, state};
  kernels::StepScalars& s = prepared.scalars;
  s.lr = o.lr() * detail::warmup(state, o.warmup_steps());
  detail::use_decays(s, state, std::get<0>(o.betas()), std::get<1>(o.betas()));
  s.eps = o.eps();
  s.z_shrink = 1 - s.lr * o.weight_decay();  // and weight_decay, which the rule takes at y, stays 0
  s.y_weight_before = state.y_weight;
  s.c = 1 - o.eval_interp_coeff();
  s.y_weight = 1 - o.train_interp_coeff();
  ++prepared.next.k;
  prepared.next.y_weight = s.y_weight;
  return prepared;
}

}  // namespace

std::unique_ptr<detail::Algorithm> GPAAdamW::make_algorithm() {
  return std::make_unique<detail::AlgorithmOf<GPAAdamWOptions>>(
      "GPAAdamW", kernels::Rule::adamw_schedule_free_momentum, prepare);
}

}  // namespace zerosched
