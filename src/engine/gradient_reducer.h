#pragma once

#include "engine/executor.h"
#include "engine/gradient_edits.h"
#include "engine/gradient_pool.h"
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
#include <utility>
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
  GradientReducer(std::vector<at::Tensor> parameters, std::vector<std::string> names, const Layout& layout,
      std::shared_ptr<Communicator> communicator, const ShardingOptions& options, Executor& executor,
      int64_t report_values, Reporter reporter);

  /// From hooks, on whatever thread runs backward. Never blocks on a peer, never throws: with what goes wrong
  /// the communicator gives up, so that the next call into the library throws it on every rank.
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
  StepReport decode_report(const void* sums) const;
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
  struct BucketState {
    int64_t remaining = 0;  ///< parameters whose gradient has not arrived
    int buffer = -1;        ///< index in the pool, -1: none
    bool launched = false;
    bool not_finite = false;  ///< some gradient that was moved to it
    std::shared_ptr<Work> work;
  };
  /// A gradient tensor as it was at some time: whether somebody has put another in its place, or written it, shows.
  struct Seen {
    const void* identity = nullptr;
    uint32_t version = 0;
    bool operator==(const Seen& other) const {
      return identity == other.identity && version == other.version;
    }
  };
  struct ParameterState {
    bool arrived = false;        ///< its hook has fired in this round
    bool waiting = false;        ///< its gradient stays in .grad until its bucket gets a buffer
    bool moved = false;          ///< its gradient is in the bucket's buffer
    Seen seen;                   ///< .grad, when it began to wait, or when step() took it and left it there
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
  bool has_own_gradient(int64_t parameter) const;
  double weight() const { return joined_ ? 0 : weight_.value_or(1); }
  Seen see_gradient(int64_t parameter) const;
  void see_gradients();
  std::string text_of_stray(int64_t parameter) const;
  at::Tensor take_gradient(int64_t parameter);
  void take_directly(int64_t parameter);
  void check_untouched(int64_t parameter) const;
  void move(int64_t parameter);
  void launch(int64_t bucket);
  void launch_up_to(size_t count);
  void launch_missing_locked();
  void start_round();
  void complete_own_report();
  void write_report(int64_t bucket, const at::Tensor& buffer);
  void compare_averages();
  void guard_gradient(int64_t parameter);
  void drop_guards();
  at::Tensor in_memory_order(const at::Tensor& gradient, int64_t parameter) const;
  at::Tensor converted(const at::Tensor& flat, at::ScalarType dtype) const;
  bool copy_pieces(int64_t bucket, int64_t slot, const at::Tensor& flat) const;
  void zero_what_is_absent(int64_t bucket, const at::Tensor& buffer) const;
  void write_flags(int64_t bucket, const at::Tensor& buffer) const;
  void reset_round();
  void share_order();
  int64_t carrier() const { return order_.front(); }
  /// Elements of one rank's slice of a bucket on the wire: gradients, flags and, of the carrier, the report.
  int64_t slice_numel(int64_t bucket) const;
  int64_t bytes_on_wire(int64_t bucket) const;
  at::Tensor buffer_of(int64_t bucket) const;
  /// One row per rank's slice.
  at::Tensor slices(int64_t bucket, const at::Tensor& buffer) const;
  BucketState& bucket_state(int64_t bucket) { return buckets_[static_cast<size_t>(bucket)]; }
  ParameterState& parameter_state(int64_t parameter) { return states_[static_cast<size_t>(parameter)]; }
  const Bucket& layout_of(int64_t bucket) const { return layout_.buckets[static_cast<size_t>(bucket)]; }
  const ReportCodec& codec_of(int64_t bucket) const { return codecs_[static_cast<size_t>(bucket)]; }

  mutable std::mutex mutex_;
  std::vector<at::Tensor> parameters_;
  std::vector<std::string> names_;
  const Layout& layout_;
  std::shared_ptr<Communicator> communicator_;
  Executor& executor_;
  const bool averaged_already_;
  const bool direct_;             ///< nothing to reduce: gradients stay where backward put them
  const bool consume_gradients_;  ///< overlapping mode: .grad is undefined once moved
  const bool guards_gradients_;   ///< ... or throws when it is read
  const int64_t report_values_;
  const Reporter reporter_;
  GradientEdits edits_;
  std::vector<ReportCodec> codecs_;  ///< by bucket; empty if direct
  GradientPool pool_;
  std::vector<at::Tensor>
      received_;  ///< per bucket: this rank's reduced slice, flags and report; undefined if direct
  std::vector<at::Tensor> shards_;  ///< the same without the report
  std::vector<ParameterState> states_;
  std::vector<bool> used_;
  std::vector<BucketState> buckets_;
  std::vector<int64_t> order_;
  std::vector<int64_t> observed_order_;
  std::vector<at::Tensor> guards_;  ///< by parameter, made when first needed
  OwnReport own_report_;
  StepReport averages_report_;  ///< where the trainer averages
  size_t next_buffer_ = 0;      ///< position in order_ of the next bucket to be given a buffer
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
