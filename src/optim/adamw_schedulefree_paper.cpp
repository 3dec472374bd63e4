#include "optim/adamw_schedulefree.h"

#include <zerosched/adamw_schedulefree_paper.h>

#include <cmath>

namespace zerosched {

namespace {

detail::PreparedStep prepare(const AdamWScheduleFreePaperOptions& o, const detail::GroupState& state) {
  detail::PreparedStep prepared = detail::prepare_adamw(o, state);
  prepared.scalars.lr *= std::sqrt(prepared.scalars.bias_correction2);
  prepared.scalars.bias_correction2 = 1;
  detail::average_by(o, prepared, state);
  return prepared;
}

}  // namespace

std::unique_ptr<detail::Algorithm> AdamWScheduleFreePaper::make_algorithm() {
  return std::make_unique<detail::AdamWScheduleFreeAlgorithm>("AdamWScheduleFreePaper", prepare);
}

}  // namespace zerosched
