#pragma once

#include "base/owner_process.h"
#include "comm/agree.h"
#include "engine/buffer_sync.h"
#include "engine/device_kernels.h"
#include "engine/gradient_hook.h"
#include "engine/gradient_reducer.h"
#include "engine/late_reports.h"
#include "engine/optimizer_state.h"
#include "engine/parameter_claim.h"
#include "engine/parameter_gathers.h"
#include "engine/savable.h"
#include "engine/shard_updater.h"
#include "engine/steering.h"
#include "engine/step_outcome.h"
#include "engine/step_timings.h"
#include "engine/untrained.h"
#include "optim/algorithm.h"

#include <zerosched/parameter_group.h>
#include <zerosched/sharding_options.h>
#include <zerosched/timings.h>
#include <zerosched/trainable.h>

#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// What a GPU is used through; tests bring their own.
struct DeviceBackend {
  device::Runtime* runtime = &device::cuda();
  DeviceKernels* kernels = nullptr;  ///< null: the library's
};

/// A sharded optimizer without its face. One step:
///
///   collect            launch_missing(): every bucket's gradients are on their way to the ranks that own them. Then
///                      what ranks tell each other with them (step_report.h): the same options, the sum of weights,
///                      who has joined. Clipping functions do this part too, and step() then does not.
///   gradient norm      only for clipping and where steps may be skipped: sum of squares of each shard, and one
///                      all-reduced scalar
///   loss               only for algorithms that take it: three numbers of each rank, in one all-reduce
///   for each bucket, in launch order; on a GPU for several at a time
///     wait             for this rank's slice of the summed gradient
///     update           z, x, v and this rank's slice of y, in one pass
///     all_gather       y, asynchronously, while the next bucket is updated
///   wait for all y
///
/// With ShardingOptions::overlap_forward the gathers are launched after all updates, and waited for by ready() and
/// enter().
///
/// On a GPU all of this is queued, and every wait is one of the caller's stream; executor.h has the rules.
///
/// Functions say in sharded_optimizer.h what they do and whether they are collective.
class Engine final : public Savable {
 public:
  /// Collective. The options in `defaults` are those of groups that have none.
  Engine(const Trainable& what, std::shared_ptr<Communicator> communicator,
      const torch::optim::OptimizerOptions& defaults, const ShardingOptions& sharding,
      std::unique_ptr<Algorithm> algorithm, const DeviceBackend& devices = {});
  ~Engine() override;

  /// Where hooks, which come before step(), find the options. Until then nothing is told of them in advance.
  void watch_options(std::function<GroupOptions()> source) { options_source_ = std::move(source); }

  void step(const GroupOptions& options);
  /// The same with gradients of loss_scale times the loss. If they hold an inf or a NaN on any rank, nothing
  /// is changed but the gradients, which are used up, and the step counts as skipped on every rank. On a GPU the host may
  /// hear of that later. Collective.
  std::shared_ptr<StepOutcome> step_scaled(const GroupOptions& options, double loss_scale);
  /// This step's gradients are of loss_scale times the loss, which clipping is to know before step_scaled(). Local.
  void unscale(double loss_scale);
  double clip_grad_norm(const GroupOptions& options, double max_norm, double norm_type);
  void clip_grad_value(const GroupOptions& options, double clip_value);
  void step_weight(double weight);
  /// The next step's, of this rank, for algorithms that take it; others leave it alone. Local.
  void set_loss(const at::Tensor& loss);
  void join(const GroupOptions& options);
  int64_t skipped_steps() {
    decide();
    return skipped_steps_;
  }
  void zero_grad(bool set_to_none);
  void train();
  void eval();
  bool training() const { return training_; }
  void enter_no_sync();
  void leave_no_sync();
  double grad_norm();
  std::map<std::string, double> grad_norms();
  int64_t state_bytes() const { return state_->byte_count(); }
  std::map<std::string, at::Tensor> full_state(const std::string& which);
  const Timings& timings() const { return timings_; }
  TimingReport timing_report();
  /// Throws if another optimizer has replaced this one. Local.
  void check_not_replaced() const { claim_->check_not_replaced(); }
  void check_can_step() const;
  /// False in a child that fork() has made of the process that constructed the engine: it is to be left as it is.
  bool is_in_its_process() const { return process_.is_this(); }

  /// With ShardingOptions::overlap_forward: has the caller come after the gathers of these parameters' buckets.
  void ready(at::TensorList tensors);
  /// False: ready() has nothing to do. Local.
  bool may_be_in_flight() const { return gathers_ != nullptr && gathers_->may_be_in_flight(); }

  OptimizerState& state() override { return *state_; }
  const std::shared_ptr<Communicator>& communicator() const override { return communicator_; }
  void check() const override;
  [[nodiscard]] std::unique_ptr<device::DeviceScope> enter() override;
  std::string why_not_savable() const override;
  std::string why_not_replaceable() const override;
  void check_in_step(const std::string& caller) override;
  void settle_module() override;
  at::Tensor gathered(int64_t bucket, Point point) override;
  void state_was_replaced(std::vector<GroupState> groups, bool is_finite) override;
  void reset_from_parameters() override;

 private:
  /// What is known of the step that is being made. Begins with the first gradient, ends with the step.
  struct Round {
    bool collected = false;
    std::optional<StepReport> report;  ///< of all ranks, where the host has it already
    int leader = -1;                   ///< whose calls ranks that have joined follow; -1: none has
    std::vector<double>
        values;  ///< to step with: rank 0's, where they differ from this rank's in the last bits only
    bool has_data = true;            ///< some rank's weight is not 0
    double average = 1;              ///< what makes a sum over ranks an average
    bool overflows = false;          ///< clip_grad_norm() has seen a norm that is not finite
    double clip = 1;                 ///< what clip_grad_norm() takes of the gradient
    std::optional<double> unscaled;  ///< the loss scale, given to unscale()
    std::optional<double> loss;      ///< given to set_loss()
  };
  /// What ranks that have joined are told to do.
  enum class Call { step, step_scaled, clip_norm, clip_value, drop };

  [[noreturn]] void fail(const std::string& message) const;
  /// Runs `function`. What goes wrong on one rank alone must reach the peers, which wait in collectives.
  template <typename Function>
  auto tell_peers_of_errors(Function&& function) {
    try {
      return function();
    } catch (const AgreedError&) {
      throw;
    } catch (const std::exception& error) {
      give_up(error);
      throw;
    }
  }
  /// Throws, unless this rank is alone.
  void give_up(const std::exception& error);
  /// The same for functions that are no part of a round: in a world of one an error leaves gradients alone.
  template <typename Function>
  auto tell_peers_outside_round(Function&& function) {
    return communicator_->size() == 1 ? function() : tell_peers_of_errors(std::forward<Function>(function));
  }

  // engine.cpp
  std::shared_ptr<StepOutcome> run_step(const GroupOptions& options, std::optional<double> loss_scale);
  std::shared_ptr<StepOutcome> make_step(const GroupOptions& options, std::optional<double> loss_scale);
  void decide();
  std::vector<GroupState> prepare(const GroupOptions& options, const LossMeasure* measure = nullptr);
  size_t updated_together(size_t position) const;
  bool update_and_gather(bool checks_gradients);
  void end_round(const GroupOptions& options, double loss_scale, bool skips);

  // engine_round.cpp
  OwnReport own_report();
  void collect(const GroupOptions& options);
  void read_report(const GroupOptions& options);
  void use_report();
  std::string unlike(
      const OwnReport& own, const std::vector<double>& final_values, const StepReport& all) const;
  void cancel_round();
  void read_late_reports(bool all);
  void forget_late_reports();
  void check_suspected_writes();

  // engine_join.cpp
  void find_leader();
  void begin_call(Call call, const GroupOptions& options, double a = 0, double b = 0);
  void tell_others(Call call, const std::vector<double>& own_values, double a, double b);
  static std::string text_of_call(const double* numbers);
  void follow(const GroupOptions& options);

  // engine_loss.cpp
  LossMeasure measure_loss(const GroupOptions& options);
  void check_loss(const LossMeasure& measure);

  // engine_norms.cpp
  double make_norm_clip(double max_norm, double norm_type);
  void make_value_clip(double clip_value);
  void measure_grad_norm(std::optional<double> max_norm, bool must_be_finite);
  std::string why_no_norm() const;

  // engine_check.cpp
  bool may_have_been_written();
  bool looks_at_bits() const;
  void check_frozen() const;
  std::string written_by_others() const;
  std::string unlike_rank_zero();
  void check_writes(const std::string& caller);
  void check_values_of_last_step();
  [[noreturn]] void fail_not_finite(int64_t bucket);
  void agree_not_finite(bool norm_follows);
  [[noreturn]] void throw_not_finite(const std::string& own_error);
  void warn_of_skip() const;
  std::string not_finite_text(const std::string& what, int64_t step) const;
  std::string not_finite_gradient(int64_t parameter) const;
  int64_t not_finite_in_shard(int64_t bucket) const;

  // engine_modes.cpp
  bool is_at_x() const;
  void set_point(Point point);

  // engine_lifetime.cpp
  void make_parts(
      const Trainable& what, const torch::optim::OptimizerOptions& defaults, const DeviceBackend& devices);

  // engine_state.cpp
  void register_hooks();
  void register_missing_hooks();

  // engine_forward.cpp
  template <typename Wait>
  void wait_for_y(const Wait& wait);
  void settle();
  void launch_gathers();
  void begin_timings();

  // engine_module.cpp
  void hand_over() noexcept;
  void settle_others() noexcept;
  template <typename Action>
  void finish(const char* what, const Action& action) noexcept;
  void finish_deciding(bool wait) noexcept;
  void finish_in_flight() noexcept;
  void leave_ranks(bool unwinding) noexcept;

  OwnerProcess process_;
  std::shared_ptr<Communicator> communicator_;
  ShardingOptions sharding_;
  std::unique_ptr<OptimizerState> state_;  ///< before what lives on its device
  std::unique_ptr<GradientReducer> reducer_;
  std::unique_ptr<ShardUpdater> updater_;
  std::unique_ptr<ParameterGathers> gathers_;  ///< if they overlap forward
  std::unique_ptr<Steering> steering_;
  std::unique_ptr<LateReports> late_reports_;  ///< on a device
  std::function<GroupOptions()> options_source_;
  std::vector<std::optional<GradientHook>>
      hooks_;  ///< by parameter; after what they call into, so that they go first
  std::unique_ptr<BufferSync> buffer_sync_;
  std::unique_ptr<Untrained> untrained_;
  std::unique_ptr<ParameterClaim> claim_;
  int64_t first_k_ = 0;  ///< steps that were done before this optimizer's own
  bool training_ = true;
  bool has_grad_norm_ = false;  ///< of the last step
  double last_clip_ = 1;        ///< of clip_grad_norm(), in the last step
  double grad_scale_ = 1;  ///< what makes the last step's summed gradient an average: 1/weights, 1/loss scale
  Round current_;
  std::vector<double> last_values_;                ///< what the last step was made with
  bool gave_weight_ = false;                       ///< in the last step
  int64_t skipped_steps_ = 0, first_skipped_ = 0;  ///< the second: before first_k_
  /// A step that the GPU takes or not, as it finds gradients: what the groups are if it does.
  struct Undecided {
    std::vector<GroupState> next;
    std::shared_ptr<StepOutcome> outcome;
    bool warns;
  };
  std::optional<Undecided> undecided_;
  Timings timings_;
  StepTimings step_timings_;
  int exceptions_at_start_;
  std::string name_;  ///< for messages
};

}  // namespace zerosched::detail
