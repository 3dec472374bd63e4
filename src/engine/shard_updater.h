#pragma once

#include "engine/device_kernels.h"
#include "engine/executor.h"
#include "engine/flat_parameters.h"
#include "engine/gradient_reducer.h"
#include "kernels/kernels.h"
#include "layout/layout.h"
#include "optim/algorithm.h"

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace zerosched::detail {

/// A rank's shard of one bucket's state, in the order of Algorithm::state(): flat, shard_numel elements each.
using ShardState = std::array<at::Tensor, kernels::kMaxStateTensors>;

/// What updates read and write. All of it outlives the updater, and keeps its addresses.
struct ShardParts {
  const Algorithm& algorithm;
  const Layout& layout;
  size_t groups;  ///< of parameters, those without elements too
  int64_t rank;
  const FlatParameters& parameters;
  const std::vector<ShardState>& state;  ///< by bucket
  const GradientReducer& gradients;
};

/// Applies steps to this rank's shards, on the kind of device that they are on. One step:
///
///   begin_step                    once gradients are on their way; nothing is clipped or skipped so far
///   sum_of_squares, use_norm      if there is clipping or loss scaling, once all gradients are there
///   update                        of each bucket whose gradients are there
///
/// Nothing here is collective. On a GPU only norm() waits for it.
class ShardUpdater {
 public:
  virtual ~ShardUpdater() = default;

  /// By parameter group.
  virtual void begin_step(const std::vector<kernels::StepScalars>& scalars) = 0;
  /// Of this rank's summed gradients: one float64, on the device.
  virtual at::Tensor sum_of_squares() = 0;
  /// Takes the sum over all ranks, of which the scalars' grad_scale makes that of the averaged gradient.
  /// The step's gradients are clipped to max_norm; with `skip_non_finite` a norm that is not finite
  /// makes update() change nothing.
  virtual void use_norm(const at::Tensor& sum, std::optional<double> max_norm, bool skip_non_finite) = 0;
  /// Of the averaged gradient, before clipping; after use_norm().
  virtual double norm() = 0;
  virtual void update(int64_t bucket) = 0;
  /// Writes `where` to `out`: flat, shard_numel elements, in the parameters' dtype.
  virtual void interpolate(int64_t bucket, const at::Tensor& out, const Interpolation& where) = 0;
};

std::unique_ptr<ShardUpdater> make_host_updater(const ShardParts& parts);
/// All of them must outlive the updater; `kernels` null: the library's.
std::unique_ptr<ShardUpdater> make_device_updater(
    const ShardParts& parts, DeviceExecutor& executor, Communicator& communicator, DeviceKernels* kernels);

}  // namespace zerosched::detail
