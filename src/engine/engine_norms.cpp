// Norms of the averaged gradient, for clipping and for logs.
#include "base/check.h"
#include "comm/agree.h"
#include "engine/engine.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

namespace zerosched::detail {

double Engine::clip_grad_norm(const GroupOptions& options, double max_norm, double norm_type) {
  check_can_step();
  return tell_peers_of_errors([&] {
    ZEROSCHED_CHECK(max_norm >= 0, "clip_grad_norm_: max_norm must not be negative, got ", max_norm, ".");
    ZEROSCHED_CHECK(
        norm_type > 0, "clip_grad_norm_: norm_type must be positive or infinity, got ", norm_type, ".");
    const at::NoGradGuard no_grad;
    const auto use = enter();
    begin_call(Call::clip_norm, options, max_norm, norm_type);
    return make_norm_clip(max_norm, norm_type);
  });
}

double Engine::make_norm_clip(double max_norm, double norm_type) {
  if (!current_.has_data) return 0;
  for (const int64_t bucket : reducer_->order()) reducer_->wait(bucket);
  kernels::StepScalars scalars;
  scalars.grad_scale = current_.average / current_.unscaled.value_or(1) * current_.clip;
  updater_->begin_step(std::vector<kernels::StepScalars>(state_->groups().size(), scalars));
  const at::Tensor terms = updater_->norm_terms(norm_type);
  const bool is_maximum = std::isinf(norm_type);
  communicator_
      ->all_reduce(
          terms, is_maximum ? ReduceOp::max : ReduceOp::sum, {"gradient norm", -1, reducer_->round()})
      ->wait();
  const double sum = *state_->executor().to_host(terms).const_data_ptr<double>();
  const double norm = (is_maximum          ? sum
                          : norm_type == 2 ? std::sqrt(sum)
                                           : std::pow(sum, 1 / norm_type)) *
                      scalars.grad_scale;
  // As torch::nn::utils::clip_grad_norm_. What is not finite is for step() to judge.
  const double factor = max_norm / (norm + 1e-6);
  const bool judges = sharding_.non_finite() != NonFinite::ignore;
  current_.overflows = current_.overflows || !std::isfinite(norm);
  // Not 0: grad_norm() divides by it again.
  if (factor < 1 && !(judges && !std::isfinite(norm)))
    current_.clip = std::max(current_.clip * factor, 1e-200);
  if (std::isnan(factor) && !judges) current_.clip = factor;
  return norm;
}

void Engine::clip_grad_value(const GroupOptions& options, double clip_value) {
  check_can_step();
  tell_peers_of_errors([&] {
    ZEROSCHED_CHECK(
        clip_value >= 0, "clip_grad_value_: clip_value must not be negative, got ", clip_value, ".");
    const at::NoGradGuard no_grad;
    const auto use = enter();
    begin_call(Call::clip_value, options, clip_value);
    make_value_clip(clip_value);
  });
}

void Engine::make_value_clip(double clip_value) {
  if (!current_.has_data) return;
  for (const int64_t bucket : reducer_->order()) reducer_->wait(bucket);
  // In units of the sums that shards hold.
  const double limit = clip_value / (current_.average / current_.unscaled.value_or(1) * current_.clip);
  updater_->begin_step(std::vector<kernels::StepScalars>(state_->groups().size()));
  updater_->clamp_gradients(limit);
}

// L2 norm of the averaged gradient. Summed per shard, then over ranks: in another order at another world
// size.
void Engine::measure_grad_norm(std::optional<double> max_norm, bool must_be_finite) {
  const at::Tensor sum = updater_->sum_of_squares();
  communicator_->all_reduce(sum, ReduceOp::sum, {"gradient norm", -1, reducer_->round()})->wait();
  updater_->use_norm(sum, max_norm, must_be_finite);
  has_grad_norm_ = true;
}

double Engine::grad_norm() {
  check();
  if (!has_grad_norm_) {
    agree(*communicator_, why_no_norm());
    tell_peers_outside_round([&] {
      const auto use = enter();
      measure_grad_norm(std::nullopt, false);
    });
  }
  // One that is known is for the log of every step, which should not end the overlap with forward.
  const auto use = state_->executor().enter();
  return updater_->norm() / last_clip_;
}

std::string Engine::why_no_norm() const {
  if (reducer_->holds_last_round()) return state_->executor().why_not_enterable();
  return "grad_norm() is of the last step(), and there is none yet, or the next backward has begun, or "
         ".grad has been changed. Call it right after step(), or set ShardingOptions::max_grad_norm.";
}

std::map<std::string, double> Engine::grad_norms() {
  check();
  const auto count = static_cast<int64_t>(state_->model().names.size());
  const at::Tensor on_host = tell_peers_outside_round([&] {
    agree(*communicator_, why_no_norm());
    const auto use = enter();
    const at::Tensor squares = updater_->squares_by_parameter(count);
    communicator_->all_reduce(squares, ReduceOp::sum, {"gradient norms"})->wait();
    return state_->executor().to_host(squares);
  });
  std::map<std::string, double> norms;
  for (int64_t p = 0; p < count; ++p) {
    norms[state_->model().names[static_cast<size_t>(p)]] =
        std::sqrt(on_host.const_data_ptr<double>()[p]) * grad_scale_;
  }
  return norms;
}

}  // namespace zerosched::detail
