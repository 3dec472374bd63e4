#pragma once

#include <zerosched/export.h>

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cstdint>
#include <optional>

namespace zerosched {

/// What .grad holds when step() is called.
enum class GradientInput {
  local,  ///< the gradient of this rank's own batch: zerosched averages over ranks
  /// The trainer has averaged .grad over ranks itself: zerosched only takes its slice, after one small
  /// all-reduce that checks that ranks agree on which parameters have a gradient.
  already_averaged,
};

/// What a step does where a gradient, or its average over ranks, holds an inf or a NaN. (GradScaler::step() always skips.)
enum class NonFinite {
  /// Throws on every rank, naming parameter, rank and step. It costs no pass over memory and no message: gradients are
  /// looked at while they are copied to be sent, and the state while it is updated. Where every rank knows before the
  /// update, as it does of a loss that is NaN, the step changes nothing and the optimizer can go on; otherwise it gives
  /// up (alone it refuses to step until a state is loaded or reset), and so it does on a GPU, where the host learns of it a step later.
  error,
  /// Leaves the step out on every rank: nothing advances, and skipped_steps() counts it. Costs what max_grad_norm costs:
  /// a pass over the reduced gradients, one all-reduced scalar, and that all of them have to be there before the first
  /// update.
  skip,
  ignore,  ///< steps with what is there
};

/// How an optimizer cuts, moves and averages; the same on every rank.
struct ZEROSCHED_EXPORT ShardingOptions {
  /// Bytes of parameters per bucket, the unit of communication. A larger parameter is a bucket of its own. By default 25
  /// MiB; over MPI between hosts 64 KiB per rank, but not less than 8 MiB and not more than 25; over NCCL, whose collectives take longer to start the more ranks there are, 4 MiB per rank, but not less than
  /// 100 MiB and not more than 400.
  TORCH_ARG(std::optional<int64_t>, bucket_bytes) = std::nullopt;
  /// Bytes of the first bucket to be ready in backward: small, so that communication starts early.
  TORCH_ARG(int64_t, first_bucket_bytes) = int64_t{1} << 20;
  /// How many gradient buckets may be in flight at once. Where all buffers are taken, gradients wait in .grad; over
  /// NCCL backward's stream waits for a buffer instead, and the host does not.
  TORCH_ARG(int, bucket_buffers) = 3;
  /// Clip the global L2 norm of the averaged gradient to this, as torch::nn::utils::clip_grad_norm_ does.
  TORCH_ARG(std::optional<double>, max_grad_norm) = std::nullopt;
  /// The type in which gradients are sent and summed; by default the parameter's, float32 for float16. float32 for 16-bit
  /// parameters sums without rounding in between; bfloat16 for float32 ones sends half as much, of which 8 bits are left
  /// (each rank's is rounded to them, sums once more, and the norm is of what is left).
  TORCH_ARG(std::optional<at::ScalarType>, reduce_dtype) = std::nullopt;
  /// Whose mean .grad is when step() is called.
  TORCH_ARG(GradientInput, gradients) = GradientInput::local;
  /// true: hooks move gradients into buckets and reduce them while backward runs, and .grad stays undefined.
  /// false: no hooks; .grad is left as LibTorch leaves it, and step() collects and reduces it.
  TORCH_ARG(bool, overlap_backward) = true;
  /// true: step() returns before the other ranks' parts of y are here, and forward begins while they arrive: on the CPU once
  /// this rank's shards are updated, on a GPU without holding up the caller's stream. What forward uses first is sent first.
  /// Results are the same, bit for bit.
  ///
  /// It asks of the trainer to call ShardedOptimizer::ready() with each module, or with tensors, right before forward uses
  /// their parameters, and with all of the model before anything else reads or writes parameters after step(): a copy, an
  /// average of the trainer's own, clamp_(). The optimizer's collective functions wait by themselves for what is not here
  /// yet, and so does, without check_ready, the first gradient of a backward that is not under no_sync(); zero_grad(), and
  /// grad_norm() where it is known, do not.
  TORCH_ARG(bool, overlap_forward) = false;
  /// For debugging, with overlap_forward: parameters are NaN from step() until ready(), or a function that waits by itself,
  /// puts y there, also in a world of one. So a forgotten ready() shows in the loss, and in the error of gradients that are
  /// not finite. Costs the memory of a second copy of the parameters, and copying it in each step.
  TORCH_ARG(bool, check_ready) = false;
  /// What to do about gradients that are not finite.
  TORCH_ARG(NonFinite, non_finite) = NonFinite::error;
  /// For debugging: whatever uses .grad between backward and step(), in overlapping mode, gets an error that names the
  /// parameter, where it would find it undefined and do nothing.
  TORCH_ARG(bool, check_grad) = false;
  /// Start every rank from rank 0's parameters and buffers; otherwise they must be the same already.
  TORCH_ARG(bool, broadcast_parameters) = true;
  /// true: eval(), checkpoints and exports make the module's buffers rank 0's on every rank, if they differ, as
  /// BatchNorm's running statistics do. torch::nn::parallel's DistributedDataParallel in Python does it at each
  /// forward. false: buffers are each rank's own, and checkpoints and exports hold rank 0's. Either way rank 0
  /// warns once that they differed.
  TORCH_ARG(bool, broadcast_buffers) = true;
};

}  // namespace zerosched
