#include "optim/schedule_free.h"

#include <zerosched/sgd_schedulefree.h>

namespace zerosched {

std::vector<Option> SGDScheduleFreeOptions::list() {
  return {{"lr", &lr(), Range::not_negative}, {"momentum", &momentum(), Range::fraction},
      {"weight_decay", &weight_decay(), Range::not_negative},
      {"warmup_steps", &warmup_steps(), Range::not_negative}, {"r", &r()},
      {"weight_lr_power", &weight_lr_power()}};
}

namespace {

detail::PreparedStep prepare(const SGDScheduleFreeOptions& o, const detail::GroupState& state) {
  detail::PreparedStep prepared;
  prepared.scalars.lr = o.lr() * detail::warmup(state, o.warmup_steps());
  prepared.scalars.weight_decay = o.weight_decay();
  detail::average(prepared, state, o.momentum(), o.r(), o.weight_lr_power());
  return prepared;
}

}  // namespace

std::unique_ptr<detail::Algorithm> SGDScheduleFree::make_algorithm() {
  return std::make_unique<detail::AlgorithmOf<SGDScheduleFreeOptions>>(
      "SGDScheduleFree", kernels::Rule::sgd_schedule_free, prepare);
}

}  // namespace zerosched
