#pragma once

#include "engine/checkpoint_series.h"
#include "engine/executor.h"
#include "engine/flat_parameters.h"
#include "engine/model.h"
#include "engine/shard_state.h"
#include "engine/shard_updater.h"
#include "layout/layout.h"
#include "optim/algorithm.h"

#include <zerosched/communicator.h>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace zerosched::detail {

/// What an optimizer has between two steps: its model in flat buffers, this rank's shards of z, x and v, and the scalars of
/// each group. It knows nothing of gradients.
///
/// Whoever touches tensors has entered before (Savable::enter()). Collective functions say so; what fails in them on one rank
/// is the caller's to tell the others.
class OptimizerState {
 public:
  /// Nothing is allocated yet.
  OptimizerState(std::shared_ptr<Communicator> communicator, std::unique_ptr<Algorithm> algorithm,
      Model model, Layout layout, size_t group_count);

  /// Where tensors are. First of all.
  void set_executor(std::unique_ptr<Executor> executor) { executor_ = std::move(executor); }
  /// Takes over the parameters, rank 0's if `broadcasts`, and starts the state at them. Collective.
  void allocate(const std::vector<const torch::optim::OptimizerOptions*>& options, bool broadcasts);
  /// What computes x and y from the shards.
  void set_updater(ShardUpdater& updater) { updater_ = &updater; }

  const Algorithm& algorithm() const { return *algorithm_; }
  const Model& model() const { return model_; }
  const Layout& layout() const { return layout_; }
  Executor& executor() const { return *executor_; }
  FlatParameters& parameters() { return *parameters_; }
  const FlatParameters& parameters() const { return *parameters_; }
  /// Of make_state().
  const std::vector<ShardState>& shards() const { return shards_; }
  std::vector<GroupState>& groups() { return groups_; }
  const std::vector<GroupState>& groups() const { return groups_; }
  /// Whether every number of this rank's shards is known to be finite.
  bool is_finite() const { return is_finite_; }
  /// By looking at all of this rank's. On a GPU it waits for them.
  bool shards_are_finite() const;
  void set_finite(bool is_finite) { is_finite_ = is_finite; }
  /// Of the checkpoints that this optimizer saves.
  CheckpointSeries& series() { return series_; }
  /// Of this rank's shards.
  int64_t byte_count() const;

  /// Where x or y of a bucket lies between its state tensors now.
  Interpolation interpolation(int64_t bucket, Point point) const;
  /// This rank's slice of a bucket at `point` to `out`: flat, shard_numel elements, in the parameters' dtype.
  void write_slice(int64_t bucket, Point point, const at::Tensor& out) const;
  /// x or y into the parameters. Collective.
  void write_parameters(Point point);
  /// A bucket's parameters at `point`: flat, world_size slices, in the parameters' dtype. Collective.
  at::Tensor gathered(int64_t bucket, Point point) const;
  /// Whole tensors by the parameters' names, contiguous, in host memory: "y", or one of Algorithm::state(). Collective.
  std::map<std::string, at::Tensor> whole(const std::string& which) const;
  /// Why there is no `which`; empty if there is.
  std::string why_not_whole(const std::string& which) const;

  /// Starts anew at what the parameters are on rank 0, which becomes z, x and y; v, k and lr_max stay. Collective.
  void restart_at_parameters();
  /// Once the shards have been overwritten: takes the scalars, and puts x or y into the parameters. Collective.
  void replaced(std::vector<GroupState> groups, bool is_finite, Point point);

 private:
  void broadcast_parameters();
  void put_parameters_into_boxes();
  void put_shards_into_boxes();
  void start_shards_at_parameters();
  at::Tensor gathered_state(size_t bucket, size_t index) const;

  std::shared_ptr<Communicator> communicator_;
  std::unique_ptr<Algorithm> algorithm_;
  Model model_;
  Layout layout_;
  std::unique_ptr<Executor> executor_;  ///< before what lives on its device
  std::unique_ptr<FlatParameters> parameters_;
  std::vector<ShardState> shards_;
  ShardUpdater* updater_ = nullptr;
  std::vector<GroupState> groups_;
  CheckpointSeries series_;
  bool is_finite_ = true;
};

}  // namespace zerosched::detail
