// What the step of an algorithm that takes the loss depends on.
#include "base/check.h"
#include "comm/agree.h"
#include "engine/engine.h"
#include "engine/phase_timer.h"
#include "kernels/clipping.h"

#include <ATen/ops/empty.h>

#include <cmath>
#include <vector>

namespace zerosched::detail {

void Engine::set_loss(const at::Tensor& loss) {
  if (!state_->algorithm().takes_loss()) return;
  check();
  tell_peers_of_errors([&] {
    ZEROSCHED_CHECK(loss.defined() && loss.numel() == 1,
        "a step takes the loss as a tensor of one element, got ",
        loss.defined() ? c10::str("one of shape ", loss.sizes()) : "an undefined one", ".");
    current_.loss = loss.detach().item().toDouble();
  });
}

// After the norm, if there is clipping. Collective.
LossMeasure Engine::measure_loss(const GroupOptions& options) {
  const OwnReport& own = reducer_->own_report();
  // As gradients are weighed; alone, or averaged by the trainer, they are not.
  const bool weighed = communicator_->size() > 1 && sharding_.gradients() == GradientInput::local;
  const double weight = own.has_joined ? 0 : weighed ? own.weight : 1;
  ZEROSCHED_CHECK(weight == 0 || current_.loss, state_->algorithm().name(),
      " makes its step size of the loss: call step(loss), or set_loss(loss) before GradScaler::step().");

  {
    const PhaseTimer timer(timings_.wait_reduce_scatter);
    for (const int64_t bucket : reducer_->order()) reducer_->wait(bucket);
  }
  const PhaseTimer timer(timings_.norm);
  const auto copies = steering_->with_values(options, current_.values);
  std::vector<double> weights;
  for (size_t g = 0; g < state_->groups().size(); ++g)
    weights.push_back(state_->algorithm().inner_product_weight(*copies[g], state_->groups()[g]));
  const at::Tensor terms = state_->executor().to_host(updater_->loss_terms(weights));

  at::Tensor sums = at::empty({3}, at::kDouble);
  auto* sum = sums.mutable_data_ptr<double>();
  sum[0] = weight == 0 ? 0 : weight * *current_.loss;
  sum[1] = terms.const_data_ptr<double>()[0];
  sum[2] = terms.const_data_ptr<double>()[1];
  communicator_->all_reduce(sums, ReduceOp::sum, {"loss", -1, reducer_->round()})->wait();
  const double average = weighed ? current_.average : 1.0 / communicator_->size();
  double scale = grad_scale_ * current_.clip;
  if (sharding_.max_grad_norm()) scale *= kernels::clip_factor(updater_->norm(), *sharding_.max_grad_norm());
  return {sum[0] * average, sum[1] * scale, sum[2] * scale};
}

// The same on all ranks, before anything has changed.
void Engine::check_loss(const LossMeasure& measure) {
  if (std::isfinite(measure.loss)) return;
  cancel_round();
  throw AgreedError(not_finite_text("the loss of some rank", state_->groups().front().k + 1));
}

}  // namespace zerosched::detail
