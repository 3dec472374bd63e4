#include "optim/schedule_free.h"

#include <zerosched/adamw.h>

namespace zerosched {

std::vector<Option> AdamWOptions::list() {
  return {{"lr", &lr(), Range::not_negative}, {"beta1", &std::get<0>(betas()), Range::decay},
      {"beta2", &std::get<1>(betas()), Range::decay}, {"eps", &eps(), Range::not_negative},
      {"weight_decay", &weight_decay(), Range::not_negative}};
}

namespace {

detail::PreparedStep prepare(const AdamWOptions& o, const detail::GroupState& state) {
  detail::PreparedStep prepared{{}, state};
  kernels::StepScalars& s = prepared.scalars;
  s.lr = o.lr();
  detail::use_decays(s, state, std::get<0>(o.betas()), std::get<1>(o.betas()));
  s.eps = o.eps();
  s.weight_decay = o.weight_decay();
  ++prepared.next.k;
  return prepared;
}

}  // namespace

std::unique_ptr<detail::Algorithm> AdamW::make_algorithm() {
  return std::make_unique<detail::AlgorithmOf<AdamWOptions>>("AdamW", kernels::Rule::adamw, prepare);
}

}  // namespace zerosched
