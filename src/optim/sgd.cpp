#include "base/check.h"
#include "optim/algorithm.h"

#include <zerosched/sgd.h>

namespace zerosched {

std::vector<Option> SGDOptions::list() {
  return {{"lr", &lr(), Range::not_negative}, {"momentum", &momentum(), Range::not_negative},
      {"weight_decay", &weight_decay(), Range::not_negative}, {"nesterov", &nesterov()}};
}

void SGDOptions::check_together() const {
  ZEROSCHED_CHECK(!nesterov() || momentum() > 0, "nesterov needs a momentum above 0.");
}

namespace {

detail::PreparedStep prepare(const SGDOptions& o, const detail::GroupState& state) {
  detail::PreparedStep prepared{{}, state};
  kernels::StepScalars& s = prepared.scalars;
  s.lr = o.lr();
  s.beta1 = o.momentum();
  s.weight_decay = o.weight_decay();
  s.nesterov = o.nesterov();
  ++prepared.next.k;
  return prepared;
}

}  // namespace

std::unique_ptr<detail::Algorithm> SGD::make_algorithm() {
  return std::make_unique<detail::AlgorithmOf<SGDOptions>>("SGD", kernels::Rule::sgd, prepare);
}

}  // namespace zerosched
