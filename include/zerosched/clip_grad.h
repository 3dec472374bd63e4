#pragma once

#include <zerosched/export.h>
#include <zerosched/sharded_optimizer.h>

namespace zerosched {

/// What torch::nn::utils::clip_grad_norm_ is to an ordinary optimizer: scales the averaged gradient of all parameters so
/// that its norm is at most max_norm, and returns the norm that it had. To be called between the last backward of a step
/// and step(); in overlapping mode .grad is undefined there and LibTorch's function would do nothing, and in compatible
/// mode it would see this rank's gradient only. Collective, with the same arguments on every rank.
///
/// norm_type: 2, any other positive number, or infinity. Costs a pass over this rank's share of the gradient
/// and one all-reduced scalar, and no update begins before all gradients are there; on a GPU the host waits for it.
/// ShardingOptions::max_grad_norm does the same in every step, and on a GPU without waiting. Gradients of a scaled loss
/// are clipped in their own units unless GradScaler::unscale_() was called before. A norm that is not finite is returned
/// and clips nothing: the step does about it what ShardingOptions::non_finite says. Throws on every rank if max_norm is
/// negative or norm_type not positive.
ZEROSCHED_EXPORT double clip_grad_norm_(ShardedOptimizer& optimizer, double max_norm, double norm_type = 2.0);

/// What torch::nn::utils::clip_grad_value_ is to an ordinary optimizer: each element of the averaged gradient into
/// [-clip_value, clip_value]. To be called as clip_grad_norm_(); costs a pass over this rank's share of the gradient. In
/// a world of one in compatible mode, and where the trainer averages, it writes to .grad, as LibTorch's does; there it
/// is this rank's share only. Collective. Throws on every rank if clip_value is negative.
ZEROSCHED_EXPORT void clip_grad_value_(ShardedOptimizer& optimizer, double clip_value);

}  // namespace zerosched
