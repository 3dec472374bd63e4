#pragma once

#include <zerosched/export.h>
#include <zerosched/sharded_optimizer.h>

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cstdint>
#include <memory>

namespace zerosched {

/// Options of GradScaler: names and defaults of torch.amp.GradScaler.
struct ZEROSCHED_EXPORT GradScalerOptions {
  /// The first scale. Positive.
  TORCH_ARG(double, init_scale) = 65536;
  /// The scale is multiplied by this after growth_interval steps in a row without overflow. More than 1.
  TORCH_ARG(double, growth_factor) = 2;
  /// ... and by this after a step with overflow. Between 0 and 1.
  TORCH_ARG(double, backoff_factor) = 0.5;
  /// The scale backs off no further than to this: below it, it is not the scale that makes gradients overflow. Positive.
  TORCH_ARG(double, min_scale) = 1.0 / 65536;
  /// Steps without overflow between two growths. Positive.
  TORCH_ARG(int64_t, growth_interval) = 2000;
};

/// What GradScaler::step() returns: whether the step was taken.
class ZEROSCHED_EXPORT ScaledStep {
 public:
  /// The same on every rank. On a GPU the host waits here until that has come so far. Local.
  operator bool() const;  // NOLINT(google-explicit-constructor): it is one

 private:
  friend class GradScaler;
  explicit ScaledStep(std::shared_ptr<detail::StepOutcome> outcome);
  std::shared_ptr<detail::StepOutcome> outcome_;
};

/// Loss scaling for gradients in 16-bit types, as torch.amp.GradScaler: one per optimizer.
///
///     scaler.scale(loss).backward();
///     scaler.step(optimizer);
///
/// Every rank's scaler goes through the same scales, because an overflow on one rank is one on all. step() does not wait
/// for a GPU to find one: what asks for the scale does, the next scale() at the latest, when forward is queued.
class ZEROSCHED_EXPORT GradScaler {
 public:
  /// Throws if an option is out of range.
  explicit GradScaler(GradScalerOptions options = {});

  /// loss * scale. Local.
  at::Tensor scale(const at::Tensor& loss) const;

  /// Between backward and clip_grad_norm_() or clip_grad_value_(): tells the optimizer that this step's gradients are
  /// scaled, so that they are clipped in their true size. Local; step() with the same scaler follows.
  void unscale_(ShardedOptimizer& optimizer);

  /// optimizer.step() with gradients divided by the scale; then grows the scale or backs off. If any rank's
  /// gradient has an inf or a NaN, or if unscaling it overflows the type of the state, no rank steps, and nothing of the
  /// optimizer's state advances: not k, not weight_sum, not v. Of float64 parameters a norm above 1e154 counts as an
  /// inf, as v, its square, would be one. 50 skips in a row are worth a warning. Clipping and grad_norm() see unscaled gradients. One all-reduced scalar more than a
  /// step without clipping. Collective. The result tells whether the step was taken.
  ScaledStep step(ShardedOptimizer& optimizer);

  /// optimizer.join(), and then the scale of the ranks that have stepped meanwhile. To be called on every rank in place
  /// of it. Collective.
  void join(ShardedOptimizer& optimizer);

  /// What the next loss is multiplied by. Local.
  double get_scale() const;
  /// Steps in a row without overflow since the scale last changed. Local.
  int64_t growth_tracker() const;
  /// Steps in a row that were skipped, up to now. Local.
  int64_t skips_in_a_row() const;
  /// Takes up where a scaler with these values was, when training resumes. Local; the same on every rank.
  void load_state(double scale, int64_t growth_tracker);

 private:
  /// Grows the scale or backs off by what has become of the last step.
  void settle() const;

  GradScalerOptions options_;
  int64_t steps_ = 0;  ///< calls of step()
  int rank_ = 0;       ///< of the last step's optimizer
  // As of the last step, unless that is yet to be asked.
  mutable std::shared_ptr<detail::StepOutcome> last_;
  mutable double scale_;
  mutable int64_t growth_tracker_ = 0;
  mutable int64_t skips_in_a_row_ = 0;
};

}  // namespace zerosched
