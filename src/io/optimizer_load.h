#pragma once

#include "io/checkpoint.h"
#include "io/load_plan.h"

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// One optimizer's part of loading a checkpoint. First prepare(), which changes nothing; once that is well on all ranks for
/// all optimizers read(), and then settle().
class OptimizerLoad {
 public:
  OptimizerLoad(CheckpointedOptimizer optimizer, std::string dir, Manifest manifest)
      : optimizer_(std::move(optimizer)), dir_(std::move(dir)), manifest_(std::move(manifest)) {}
  OptimizerLoad(const OptimizerLoad&) = delete;
  OptimizerLoad& operator=(const OptimizerLoad&) = delete;

  Savable& optimizer() const { return *optimizer_.optimizer; }
  /// Decides what is taken, and verifies the bytes that this rank needs. Throws naming what does not fit or is damaged.
  /// Local.
  void prepare(const LoadOptions& how);
  /// Of a partial load.
  const LoadPlan& plan() const { return plan_; }
  /// Overwrites this rank's shards, and on rank 0 what is not sharded. Local.
  void read();
  /// Makes the state that of the optimizer. Collective.
  void settle();
  /// Gives the groups the checkpoint's options, if it was loaded as a whole. Local.
  void take_options() const;

 private:
  /// A tensor in module.safetensors and the state that starts there.
  struct UnshardedShard {
    std::string name;
    const ParameterSpec* parameter = nullptr;
    int64_t begin = 0;  ///< element of the parameter
    at::Tensor to;
  };

  void check_options() const;
  void want_shards();
  void want_piece(const Bucket& bucket, const Piece& piece, const ShardState& shard);
  void want_unsharded();
  void verify_unsharded(bool all) const;
  void start_anew(const Bucket& bucket, const Piece& piece, const ShardState& shard);
  void for_own_pieces(
      const std::function<void(const Bucket&, const Piece&, const ShardState&)>& function) const;
  size_t index_of_x() const;
  OptimizerState& state() const { return optimizer().state(); }

  CheckpointedOptimizer optimizer_;
  const std::string dir_;
  const Manifest manifest_;
  std::optional<SavedState> saved_;
  LoadPlan plan_;
  NamedTensors unsharded_;
  std::optional<StateReader> shards_, whole_;  ///< on the optimizer's device; in host memory, on rank 0
  std::vector<UnshardedShard> unsharded_shards_;
  std::vector<at::Tensor> weights_;  ///< by unsharded tensor: in host memory, what whole_ reads
};

}  // namespace zerosched::detail
