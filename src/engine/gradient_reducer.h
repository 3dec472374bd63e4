#pragma once

#include "engine/executor.h"
#include "engine/gradient_edits.h"
#include "engine/gradient_packer.h"
#include "engine/gradient_pool.h"
#include "engine/parameter_gradients.h"
#include "engine/step_report.h"
#include "layout/layout.h"

#include <zerosched/communicator.h>
#include <zerosched/sharding_options.h>

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::detail {

/// Where the gradients of the elements [begin, begin + numel) of a shard are: all of one parameter.
struct GradientSpan {
  int64_t parameter = 0;
  int64_t begin = 0, numel = 0;
  at::Tensor source;         ///< flat, contiguous
  int64_t source_begin = 0;  ///< in it, the first gradient
  int64_t flag = -1;         ///< in it, the element that is 0 if no rank used the parameter; -1: it was used
};

/// Which gradients of a bucket were not finite before they were summed.
struct NotFiniteSources {
  int64_t count = 0;  ///< ranks
  int64_t rank = -1;  ///< if it is one
};

/// Brings gradients from .grad to the shards of the ranks that own them. One round is one optimizer step:
///
///   hooks          gradient_ready(p): .grad of p goes to the packer, .grad undefined
///                  a complete bucket whose turn it is: packed into its buffer, reduce-scatter launched
///   step()         launch_missing(): the buckets that are left, absent gradients as zeros
///                  wait(b), spans(b): this rank's slice of bucket b
///                  finish_round()
///
/// What a parameter's gradient is: ParameterGradients. What lies where in a bucket: GradientPacker. Here: in which order
/// buckets are launched, and which buffer each takes (GradientPool).
///
/// Where there is nothing to reduce (a world of one, or gradients that the trainer has averaged) spans point
/// straight into the gradients that backward made: no buffers, no copies.
///
/// Buckets are launched in one order, the same on every rank: bucket order in the first round, then the order in which
/// rank 0 saw them complete, broadcast once. The order alone says which buffer a bucket takes. In host memory, and where
/// waiting for a reduction blocks the host, a bucket has its buffer once the host has seen the reduction of the one before
/// in it done; until then its gradients wait in .grad. Elsewhere the device waits, beside the stream of backward, which is
/// never held up by what the host has not seen yet.
///
/// The first bucket in order carries every rank's report (step_report.h). Where gradients are the trainer's averages,
/// the all-reduce that compares them does.
class GradientReducer {
 public:
  /// Gives what is this rank's own to report, as a round begins: on the thread of its first hook, or of step() if no
  /// gradient has arrived.
  using Reporter = std::function<OwnReport()>;

  /// Collective (allocates from the communicator). `layout` and `executor` must outlive this. `report_values`: how many
  /// values a report has.
  /// `packer`: of the same layout; null where there is nothing to reduce.
  GradientReducer(std::vector<at::Tensor> parameters, std::vector<std::string> names, const Layout& layout,
      std::shared_ptr<Communicator> communicator, const ShardingOptions& options, Executor& executor,
      std::unique_ptr<GradientPacker> packer, int64_t report_values, Reporter reporter);

  /// From hooks, on whatever thread runs backward. Never blocks on a peer, but for parameters that are still on their
  /// way (ParameterGathers), never throws: with what goes wrong the communicator gives up, so that the next call into the library throws it on every rank.
  void gradient_ready(int64_t parameter) noexcept;

  /// From hooks where .grad is the user's: backward has left a gradient there. Never throws.
  void gradient_left(int64_t parameter) noexcept;
  /// Whether another rank's factor and this one's can only be those of LibTorch's clipping.
  bool was_clipped_by_rank(double factor_of_other) const {
    return edits_.look_like_clipping(own_report_.gradient_factor, factor_of_other);
  }

  /// In eval mode gradients are left in .grad, and remembered as stray.
  void set_training(bool training);
  void enter_no_sync();
  void leave_no_sync();
  /// The weight of this rank's gradient in this round's average; 0: what backward leaves does not count. Throws if
  /// gradients have been sent already.
  void set_weight(double weight);
  /// This rank has no gradients in this round, and its weight is 0.
  void set_joined();

  /// A gradient that arrived in eval mode and was not dropped by drop(): a message, or empty. Where there are no hooks it
  /// shows in .grad. Local.
  std::string stray() const;
  /// True if gradients have arrived that no step() has used yet: some rank may have launched a bucket.
  bool in_flight() const;
  /// True if gradients of no_sync() passes wait for the backward that sends them. Local.
  bool holds_accumulated() const;

  /// Collective: every rank launches the same buckets in the same order. Gradients that come after it, and before
  /// finish_round() or drop(), are an error.
  void launch_missing();
  /// Only the bucket that carries the report. Collective; not in a world of one.
  void launch_report();
  /// After either: the report of all ranks. Waits for it, the host too.
  StepReport report();
  /// Where the report will be in memory of the device; undefined where the host has it already.
  at::Tensor report_on_device() const;
  /// The bucket that carries this round's report; -1 where there is none. After the first round it may be another.
  int64_t carrier() const { return order_.empty() ? -1 : order_.front(); }
  /// `carrier`: of the round in which the report came.
  StepReport decode_report(int64_t carrier, const void* sums) const;
  /// Of this rank, as it was sent in this round.
  const OwnReport& own_report() const { return own_report_; }

  /// Returns once what follows may use bucket b's reduced gradients.
  void wait(int64_t bucket);
  /// After launch_missing(), for use after wait(b): where the summed gradients (averaged ones if the trainer
  /// averages) of this rank's shard are, in ascending order. The same in every round unless shard() is
  /// undefined. Valid until the next round's first gradient.
  std::vector<GradientSpan> spans(int64_t bucket) const;
  /// The source of all of a bucket's spans, followed by their flags. Undefined if spans point at single
  /// gradients.
  const at::Tensor& shard(int64_t bucket) const { return shards_[static_cast<size_t>(bucket)]; }
  /// After wait(b), of gradients in host memory that were reduced.
  NotFiniteSources not_finite_sources(int64_t bucket) const;
  /// The first parameter whose gradient of this rank was seen not to be finite in this round; -1 if none was. Only
  /// gradients in host memory that are sent are looked at.
  int64_t not_finite_parameter() const;
  /// After launch_missing(), where .grad is the user's: which parameter's has been replaced or written since; -1: none.
  int64_t changed_gradient() const;

  /// Collective in the first round, local afterwards.
  void finish_round();
  /// Ends a round of which only the report was launched.
  void abandon_round();
  /// Ends a round that every rank has launched whole, without using its gradients. In compatible mode they stay in
  /// .grad.
  void cancel_round();

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
  /// `everywhere`: also if none has arrived here, because every rank knows that some have elsewhere.
  void drop(bool set_to_none, bool everywhere = false);

 private:
  using Seen = ParameterGradients::Seen;
  struct BucketState {
    int64_t remaining = 0;       ///< parameters whose gradient has not arrived
    OutgoingBucket out;          ///< without a buffer until it is given one
    std::shared_ptr<Work> work;  ///< its reduction, once launched
  };
  struct ParameterState {
    bool arrived = false;        ///< its hook has fired in this round
    bool waiting = false;        ///< its gradient stays in .grad until its bucket gets a buffer
    Seen seen;                   ///< .grad, when it began to wait, or when step() took it and left it there
    at::Tensor taken;            ///< direct: the gradient itself, flat
    uint32_t taken_version = 0;  ///< of `taken` when the round was finished: without hooks it is still .grad
  };

  // gradient_reducer.cpp: order and launching
  void handle(int64_t parameter);
  void pump();
  bool buffer_is_free(size_t position) const;
  void give_buffer(int64_t bucket);
  void launch(size_t position);
  void launch_up_to(size_t count);
  void launch_missing_locked();
  void wait_locked(int64_t bucket);
  void set_order(std::vector<int64_t> order);
  const OutgoingBucket& outgoing(int64_t bucket);
  int64_t slice_numel(int64_t bucket) const;
  size_t position_of(int64_t bucket) const { return positions_[static_cast<size_t>(bucket)]; }
  BucketState& bucket_state(int64_t bucket) { return buckets_[static_cast<size_t>(bucket)]; }
  const Bucket& layout_of(int64_t bucket) const { return layout_.bucket(bucket); }
  const ReportCodec& codec_of(int64_t bucket) const { return codecs_[static_cast<size_t>(bucket)]; }

  // gradient_collection.cpp: single gradients
  ParameterState& parameter_state(int64_t parameter) { return states_[static_cast<size_t>(parameter)]; }
  double weight() const { return joined_ ? 0 : weight_.value_or(1); }
  void see_gradients();
  std::string text_of_stray(int64_t parameter) const;
  void guard(int64_t parameter);
  void take_directly(int64_t parameter);
  void check_untouched(int64_t parameter) const;
  void put(int64_t parameter);

  // gradient_report.cpp
  void complete_own_report();
  std::vector<std::byte> encoded_report(int64_t bucket);
  void compare_averages();

  // gradient_round.cpp
  void start_round();
  void reset_round();
  void share_order();

  // Guards all that is not const: hooks run in several threads, beside the caller's.
  mutable std::mutex mutex_;
  const Layout& layout_;
  std::shared_ptr<Communicator> communicator_;
  Executor& executor_;
  const bool averaged_already_;
  const bool direct_;  ///< nothing to reduce: gradients stay where backward put them
  ParameterGradients gradients_;
  const int64_t report_values_;
  const Reporter reporter_;
  GradientEdits edits_;
  std::vector<ReportCodec> codecs_;  ///< by bucket; empty if direct
  std::unique_ptr<GradientPacker> packer_;
  GradientPool pool_;
  // Per bucket: this rank's reduced slice, flags and report, and the same without the report; undefined if direct.
  std::vector<at::Tensor> received_, shards_;
  std::vector<ParameterState> states_;
  std::vector<BucketState> buckets_;
  std::vector<int64_t> order_;
  std::vector<size_t> positions_;  ///< in order_, by bucket
  std::vector<int64_t> observed_order_;
  OwnReport own_report_;
  StepReport averages_report_;  ///< where the trainer averages
  size_t next_buffer_ = 0;      ///< position in order_ of the next bucket to be given its buffer
  size_t next_launch_ = 0;
  bool order_shared_ = false;
  int64_t arrived_count_ = 0;
  int64_t round_ = -1;            ///< reset_round() starts round 0
  bool closed_ = false;           ///< launch_missing() was called in this round
  std::optional<double> weight_;  ///< given by the trainer for this round
  bool joined_ = false;
  int64_t not_finite_parameter_ = -1;
  bool training_ = true;
  int no_sync_ = 0;
  bool holds_last_round_ = false;
  std::string error_;  ///< what a hook found wrong; later gradients are left alone
  std::string stray_;
  std::chrono::steady_clock::time_point first_hook_, last_hook_;
  double backward_seconds_ = 0;
};

}  // namespace zerosched::detail
