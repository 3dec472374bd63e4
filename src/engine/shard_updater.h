#pragma once

#include "engine/device_kernels.h"
#include "engine/executor.h"
#include "engine/flat_parameters.h"
#include "engine/gradient_reducer.h"
#include "engine/shard_state.h"
#include "kernels/kernels.h"
#include "layout/layout.h"
#include "optim/algorithm.h"

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace zerosched::detail {

/// What updates read and write. All of it outlives the updater, and keeps its addresses.
struct ShardParts {
  const Algorithm& algorithm;
  const Layout& layout;
  size_t groups;  ///< of parameters, those without elements too
  int64_t rank;
  const FlatParameters& parameters;
  const std::vector<ShardState>& state;  ///< of make_state()
  const GradientReducer& gradients;

  /// float64 if that is the dtype of every bucket's state, else float32.
  c10::ScalarType narrowest_state() const;
};

/// Applies steps to this rank's shards, on the kind of device that they are on. One step:
///
///   begin_step                    once gradients are on their way; nothing is clipped or skipped so far
///   clamp_gradients               if single elements are clipped, once all gradients are there
///   sum_of_squares, use_norm      if there is clipping or loss scaling, once all gradients are there
///   loss_terms, replace_scalars   if the step depends on the loss, once all gradients are there
///   update                        of each bucket whose gradients are there
///
/// Nothing here is collective. On a GPU only norm(), overflows() and first_difference() wait for it.
class ShardUpdater {
 public:
  virtual ~ShardUpdater() = default;

  /// By parameter group.
  virtual void begin_step(const std::vector<kernels::StepScalars>& scalars) = 0;
  /// The summed gradients into [-limit, limit].
  virtual void clamp_gradients(double limit) = 0;
  /// Of this rank's summed gradients: one float64, on the device.
  virtual at::Tensor sum_of_squares() = 0;
  /// The same for any norm: the sum of the elements' magnitudes to the power of norm_type, or the largest of them if
  /// that is infinity.
  virtual at::Tensor norm_terms(double norm_type) = 0;
  /// The sum of squares of each parameter's part of the shards: a float64 per parameter, on the device.
  virtual at::Tensor squares_by_parameter(int64_t parameters) = 0;
  /// Takes the sum over all ranks, of which the scalars' grad_scale makes that of the averaged gradient.
  /// The step's gradients are clipped to max_norm; with `skip_non_finite` a norm that is not finite, in the type that
  /// updates compute in, makes update() change nothing.
  virtual void use_norm(const at::Tensor& sum, std::optional<double> max_norm, bool skip_non_finite) = 0;
  /// After use_norm(): norm() or overflows() will be asked for later, and then does not wait for what comes in between.
  virtual void expect_norm() = 0;
  /// Of this rank's summed gradients g, with the state before the step: two float64 on the device, the sum of |g|, and of
  /// g (z - x) times the element's group's weight.
  virtual at::Tensor loss_terms(const std::vector<double>& weights) = 0;
  /// Other scalars than those of begin_step(), of the same grad_scale, which is clipped as use_norm() has said.
  virtual void replace_scalars(const std::vector<kernels::StepScalars>& scalars) = 0;
  /// Of the averaged gradient, before clipping; after use_norm().
  virtual double norm() = 0;
  /// After use_norm() with skip_non_finite: whether update() changes nothing.
  virtual bool overflows() = 0;
  /// What a GPU makes of use_norm(), in its memory: a GradientNorm; undefined on the CPU and in steps without a norm.
  virtual at::Tensor norm_on_device() const = 0;
  /// Of the given buckets, in any order, each once. Whether the state is finite after it, as far as the host can see
  /// now: always true of a GPU, where neighbours of one group and dtype take one launch.
  virtual bool update(const std::vector<int64_t>& buckets) = 0;
  /// Writes `where` to `out`: flat, shard_numel elements, in the parameters' dtype.
  virtual void interpolate(int64_t bucket, const at::Tensor& out, const Interpolation& where) = 0;
  /// The first element of `values`, a shard in the parameters' dtype, whose bits are not those of `where`; -1: none. On
  /// a GPU the host waits for it.
  virtual int64_t first_difference(int64_t bucket, const at::Tensor& values, const Interpolation& where) = 0;
};

/// Of two ranges of `count` bytes; -1: none.
int64_t first_difference_of_bytes(const void* a, const void* b, size_t count);

std::unique_ptr<ShardUpdater> make_host_updater(const ShardParts& parts);
/// All of them must outlive the updater. `not_finite`: one int32 on the device, which
/// an update sets where the state is not finite after it.
std::unique_ptr<ShardUpdater> make_device_updater(const ShardParts& parts, DeviceExecutor& executor,
    Communicator& communicator, DeviceKernels& kernels, const at::Tensor& not_finite);

}  // namespace zerosched::detail
