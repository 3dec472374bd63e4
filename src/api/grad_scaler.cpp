#include <zerosched/grad_scaler.h>

#include "base/check.h"
#include "engine/step_outcome.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace zerosched {
namespace {

// From 65536 down to 1 it takes 16.
constexpr int64_t kSkipsWorthAWarning = 50;

using Kind = detail::StepOutcome::Kind;

}  // namespace

GradScaler::GradScaler(GradScalerOptions options) : options_(options), scale_(options.init_scale()) {
  ZEROSCHED_CHECK(std::isfinite(scale_) && scale_ > 0, "GradScalerOptions::init_scale must be positive, got ",
      scale_, ".");
  ZEROSCHED_CHECK(options.growth_factor() > 1, "GradScalerOptions::growth_factor must be more than 1, got ",
      options.growth_factor(), ".");
  ZEROSCHED_CHECK(options.backoff_factor() > 0 && options.backoff_factor() < 1,
      "GradScalerOptions::backoff_factor must be between 0 and 1, got ", options.backoff_factor(), ".");
  ZEROSCHED_CHECK(std::isfinite(options.min_scale()) && options.min_scale() > 0,
      "GradScalerOptions::min_scale must be positive, got ", options.min_scale(), ".");
  ZEROSCHED_CHECK(options.growth_interval() > 0, "GradScalerOptions::growth_interval must be positive, got ",
      options.growth_interval(), ".");
}

ScaledStep::ScaledStep(std::shared_ptr<detail::StepOutcome> outcome) : outcome_(std::move(outcome)) {}

ScaledStep::operator bool() const { return outcome_->get() == Kind::taken; }

at::Tensor GradScaler::scale(const at::Tensor& loss) const { return loss * get_scale(); }

double GradScaler::get_scale() const {
  settle();
  return scale_;
}

int64_t GradScaler::growth_tracker() const {
  settle();
  return growth_tracker_;
}

int64_t GradScaler::skips_in_a_row() const {
  settle();
  return skips_in_a_row_;
}

void GradScaler::unscale_(ShardedOptimizer& optimizer) { optimizer.unscale(get_scale()); }

ScaledStep GradScaler::step(ShardedOptimizer& optimizer) {
  auto outcome = optimizer.step_scaled(get_scale());
  ++steps_;
  rank_ = optimizer.communicator()->rank();
  last_ = outcome;
  if (outcome->kind != Kind::undecided) settle();
  return ScaledStep(std::move(outcome));
}

void GradScaler::settle() const {
  if (!last_) return;
  const Kind outcome = last_->get();
  last_.reset();
  if (outcome == Kind::no_data) return;
  skips_in_a_row_ = outcome == Kind::taken ? 0 : skips_in_a_row_ + 1;
  if (outcome == Kind::skipped) {
    scale_ = std::max(scale_ * options_.backoff_factor(), std::min(options_.min_scale(), scale_));
    growth_tracker_ = 0;
    if (skips_in_a_row_ == kSkipsWorthAWarning && rank_ == 0) {
      TORCH_WARN("zerosched: GradScaler has skipped ", skips_in_a_row_,
          " steps in a row, and its scale is down to ", scale_,
          ": the gradients are not finite at any scale. Look for what makes them so in the model or the "
          "data.");
    }
  } else if (++growth_tracker_ == options_.growth_interval()) {
    const double grown = scale_ * options_.growth_factor();
    // A scale that float32 cannot hold would turn every loss into inf.
    if (std::isfinite(static_cast<float>(grown))) scale_ = grown;
    growth_tracker_ = 0;
  }
}

void GradScaler::join(ShardedOptimizer& optimizer) {
  settle();
  optimizer.join();
  Communicator& communicator = *optimizer.communicator();
  // Of the ranks that have made the most steps the first, whose scaler is the one that all would have.
  at::Tensor most = at::full({1}, steps_, at::kLong);
  communicator.all_reduce(most, ReduceOp::max, {"steps of loss scalers"})->wait();
  const bool is_last = most.item<int64_t>() == steps_;
  at::Tensor first = at::full({1}, is_last ? communicator.rank() : communicator.size(), at::kLong);
  communicator.all_reduce(first, ReduceOp::min, {"rank with the last step"})->wait();
  at::Tensor state = at::tensor(
      {scale_, static_cast<double>(growth_tracker_), static_cast<double>(skips_in_a_row_)}, at::kDouble);
  communicator.broadcast(state, static_cast<int>(first.item<int64_t>()), {"loss scaler"})->wait();
  const double* values = state.const_data_ptr<double>();
  scale_ = values[0];
  growth_tracker_ = static_cast<int64_t>(values[1]);
  skips_in_a_row_ = static_cast<int64_t>(values[2]);
  steps_ = most.item<int64_t>();
}

void GradScaler::load_state(double scale, int64_t growth_tracker) {
  ZEROSCHED_CHECK(
      std::isfinite(scale) && scale > 0, "GradScaler: the scale must be positive, got ", scale, ".");
  ZEROSCHED_CHECK(growth_tracker >= 0 && growth_tracker < options_.growth_interval(),
      "GradScaler: growth_tracker must be from 0 to below growth_interval, ", options_.growth_interval(),
      ", got ", growth_tracker, ".");
  last_.reset();
  scale_ = scale;
  growth_tracker_ = growth_tracker;
}

}  // namespace zerosched
