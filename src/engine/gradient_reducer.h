#pragma once

#include "engine/executor.h"
#include "engine/gradient_pool.h"
#include "layout/layout.h"

#include <zerosched/communicator.h>
#include <zerosched/sharding_options.h>

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// Where the gradients of the elements [begin, begin + numel) of a shard are: all of one parameter.
struct GradientSpan {
  int64_t begin = 0, numel = 0;
  at::Tensor source;         ///< flat, contiguous
  int64_t source_begin = 0;  ///< in it, the first gradient
  int64_t flag = -1;         ///< in it, the element that is 0 if no rank used the parameter; -1: it was used
};

/// Brings gradients from .grad to the shards of the ranks that own them. One round is one optimizer step:
///
///   hooks          gradient_ready(p): .grad of p -> its bucket's flat buffer, .grad undefined
///                  a complete bucket whose turn it is: reduce-scatter launched
///   step()         launch_missing(): the buckets that are left, absent gradients as zeros
///                  wait(b), spans(b): this rank's slice of bucket b
///                  finish_round()
///
/// Where there is nothing to reduce (a world of one, or gradients that the trainer has averaged) spans point
/// straight into the gradients that backward made: no buffers, no copies.
///
/// Buckets take buffers and are launched in one order, the same on every rank: bucket order in the first
/// round, then the order in which rank 0 saw them complete, broadcast once. Since buffers are given out in
/// launch order, one buffer is enough for progress; gradients that find none wait in .grad.
class GradientReducer {
 public:
  /// Collective (allocates from the communicator). `layout` and `executor` must outlive this.
  GradientReducer(std::vector<at::Tensor> parameters, std::vector<std::string> names, const Layout& layout,
      std::shared_ptr<Communicator> communicator, const ShardingOptions& options, Executor& executor);

  /// From hooks, on whatever thread runs backward. Never blocks on a peer, never throws: with what goes wrong
  /// the communicator gives up, so that the next call into the library throws it on every rank.
  void gradient_ready(int64_t parameter) noexcept;

  /// In eval mode gradients are left in .grad, and remembered as stray.
  void set_training(bool training);
  void enter_no_sync();
  void leave_no_sync();

  /// A gradient that arrived in eval mode and was not dropped by drop(): a message, or empty. Local.
  std::string stray() const;
  /// True if gradients have arrived that no step() has used yet: some rank may have launched a bucket.
  bool in_flight() const;

  /// Collective: every rank launches the same buckets in the same order.
  void launch_missing();
  /// Returns once what follows may use bucket b's reduced gradients.
  void wait(int64_t bucket);
  /// After launch_missing(), for use after wait(b): where the summed gradients (averaged ones if the trainer
  /// averages) of this rank's shard are, in ascending order. The same in every round unless shard() is
  /// undefined. Valid until the next round's first gradient.
  std::vector<GradientSpan> spans(int64_t bucket) const;
  /// The source of all of a bucket's spans, followed by their flags. Undefined if spans point at single
  /// gradients.
  const at::Tensor& shard(int64_t bucket) const { return shards_[static_cast<size_t>(bucket)]; }
  /// Collective in the first round, local afterwards.
  void finish_round();

  /// True while spans() still gives the gradients of the last finished round. Local.
  bool holds_last_round() const;
  const std::vector<int64_t>& order() const { return order_; }
  int64_t round() const { return round_; }
  /// Per parameter: whether it has had a gradient on this rank, in any round. Local.
  std::vector<bool> used_so_far() const;
  /// Seconds from the round's first hook to its last.
  double backward_seconds() const;

  /// Forgets the gradients of this round. Local if none has arrived, else collective: the buckets that
  /// some ranks may have launched are completed and dropped by all.
  void drop(bool set_to_none);

 private:
  struct BucketState {
    int64_t remaining = 0;  ///< parameters whose gradient has not arrived
    int buffer = -1;        ///< index in the pool, -1: none
    bool launched = false;
    std::shared_ptr<Work> work;
  };
  struct ParameterState {
    bool arrived = false;        ///< its hook has fired in this round
    bool waiting = false;        ///< its gradient stays in .grad until its bucket gets a buffer
    bool moved = false;          ///< its gradient is in the bucket's buffer
    at::Tensor accumulated;      ///< float32 sum over no_sync passes, 16-bit parameters only; flat
    at::Tensor taken;            ///< direct: the gradient itself, flat
    uint32_t taken_version = 0;  ///< of `taken` when the round was finished: without hooks it is still .grad
  };

  void handle(int64_t parameter);
  void accumulate(int64_t parameter);
  void pump();
  void release_finished();
  void release(BucketState& bucket);
  void give_buffer(int64_t bucket, int buffer);
  bool has_gradient(int64_t parameter) const;
  at::Tensor take_gradient(int64_t parameter);
  void move(int64_t parameter);
  void launch(int64_t bucket);
  void launch_missing_locked();
  void start_round();
  void check_averaged() const;
  at::Tensor in_memory_order(const at::Tensor& gradient, int64_t parameter) const;
  at::Tensor converted(const at::Tensor& flat, at::ScalarType dtype) const;
  void copy_pieces(int64_t bucket, int64_t slot, const at::Tensor& flat) const;
  void zero_what_is_absent(int64_t bucket, const at::Tensor& buffer) const;
  void write_flags(int64_t bucket, const at::Tensor& buffer) const;
  void reset_round();
  void share_order();
  at::Tensor buffer_of(int64_t bucket) const;
  BucketState& bucket_state(int64_t bucket) { return buckets_[static_cast<size_t>(bucket)]; }
  ParameterState& parameter_state(int64_t parameter) { return states_[static_cast<size_t>(parameter)]; }
  const Bucket& layout_of(int64_t bucket) const { return layout_.buckets[static_cast<size_t>(bucket)]; }

  mutable std::mutex mutex_;
  std::vector<at::Tensor> parameters_;
  std::vector<std::string> names_;
  const Layout& layout_;
  std::shared_ptr<Communicator> communicator_;
  Executor& executor_;
  const bool averaged_already_;
  const bool direct_;             ///< nothing to reduce: gradients stay where backward put them
  const bool consume_gradients_;  ///< overlapping mode: .grad is undefined once moved
  GradientPool pool_;
  std::vector<at::Tensor>
      shards_;  ///< per bucket: this rank's reduced slice and its flags; undefined if direct
  std::vector<ParameterState> states_;
  std::vector<bool> used_;
  std::vector<BucketState> buckets_;
  std::vector<int64_t> order_;
  std::vector<int64_t> observed_order_;
  size_t next_buffer_ = 0;  ///< position in order_ of the next bucket to be given a buffer
  size_t next_launch_ = 0;
  bool order_shared_ = false;
  int64_t arrived_count_ = 0;
  int64_t round_ = -1;  ///< reset_round() starts round 0
  bool training_ = true;
  int no_sync_ = 0;
  bool holds_last_round_ = false;
  std::string error_;  ///< what a hook found wrong; later gradients are left alone
  std::string stray_;
  std::chrono::steady_clock::time_point first_hook_, last_hook_;
  double backward_seconds_ = 0;
};

}  // namespace zerosched::detail
