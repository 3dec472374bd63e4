#pragma once

#include "engine/buffer_sync.h"
#include "engine/device_kernels.h"
#include "engine/executor.h"
#include "engine/flat_parameters.h"
#include "engine/gradient_hook.h"
#include "engine/gradient_reducer.h"
#include "engine/model.h"
#include "engine/parameter_claim.h"
#include "engine/shard_updater.h"
#include "engine/step_timings.h"
#include "engine/untrained.h"
#include "layout/layout.h"
#include "optim/algorithm.h"

#include <zerosched/sharded_optimizer.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::detail {

/// The options of every parameter group, read anew at each step because schedulers change them.
using GroupOptions = std::vector<torch::optim::OptimizerOptions*>;

/// What a GPU is used through; tests bring their own.
struct DeviceBackend {
  device::Runtime* runtime = &device::cuda();
  DeviceKernels* kernels = nullptr;  ///< null: the library's
};

/// A sharded optimizer without its face. One step:
///
///   launch_missing     every bucket's gradients are on their way to the ranks that own them
///   gradient norm      only for clipping and under loss scaling: sum of squares of each shard, and one
///                      all-reduced scalar
///   for each bucket, in launch order
///     wait             for this rank's slice of the summed gradient
///     update           z, x, v and this rank's slice of y, in one pass
///     all_gather       y, asynchronously, while the next bucket is updated
///   wait for all y
///
/// On a GPU all of this is queued, and every wait is one of the caller's stream; executor.h has the rules.
///
/// Functions say in sharded_optimizer.h what they do and whether they are collective.
class ZEROSCHED_EXPORT Engine {
 public:
  /// Collective. The options in `defaults` are those of groups that have none.
  Engine(const Trainable& what, std::shared_ptr<Communicator> communicator,
      const torch::optim::OptimizerOptions& defaults, const ShardingOptions& sharding,
      std::unique_ptr<Algorithm> algorithm, const DeviceBackend& devices = {});
  ~Engine();

  void step(const GroupOptions& options);
  /// The same with gradients of loss_scale times the loss. If they hold an inf or a NaN on any rank, nothing
  /// is changed but the gradients, which are used up, and the result is false on every rank. Collective.
  bool step_scaled(const GroupOptions& options, double loss_scale);
  void zero_grad(bool set_to_none);
  void train();
  void eval();
  bool training() const { return training_; }
  void enter_no_sync();
  void leave_no_sync();
  double grad_norm();
  int64_t state_bytes() const;
  std::map<std::string, at::Tensor> full_state(const std::string& which);
  void reset_from_parameters();
  const Timings& timings() const { return timings_; }
  TimingReport timing_report();
  const std::shared_ptr<Communicator>& communicator() const { return communicator_; }
  /// Throws what a hook or a peer has reported since the last call. Local.
  void check() const;
  /// Throws if another optimizer has replaced this one. Local.
  void check_not_replaced() const { claim_->check_not_replaced(); }
  void check_can_step() const;

  // What src/io saves and replaces, after executor().enter().
  Executor& executor() const { return *executor_; }
  const Model& model() const { return model_; }
  const Layout& layout() const { return layout_; }
  const Algorithm& algorithm() const { return *algorithm_; }
  const std::vector<GroupState>& groups() const { return groups_; }
  /// This rank's shard of tensor `index` of Algorithm::state(): flat, bucket.shard_numel elements.
  const at::Tensor& state(int64_t bucket, size_t index) const {
    return state_[static_cast<size_t>(bucket)][index];
  }
  /// Why the state cannot be saved now; empty if it can. Local.
  std::string why_not_savable() const;
  /// Why the state cannot be replaced now; empty if it can. Local.
  std::string why_not_replaceable() const;
  /// To be called once the tensors of state() have been overwritten: takes over the scalars of the groups,
  /// and puts x or y, as the mode asks, into the parameters. Collective.
  void state_was_replaced(std::vector<GroupState> groups);
  /// A bucket's parameters at `point`: flat, world_size slices, in the parameters' dtype. Collective.
  at::Tensor gathered(int64_t bucket, Point point);
  /// To be called before the whole module is used as one: buffers become the same on all ranks, and what is not
  /// trained is warned of. Collective.
  void settle_module();

 private:
  [[noreturn]] void fail(const std::string& message) const;
  template <typename Function>
  auto tell_peers_of_errors(Function&& function);
  bool run_step(const GroupOptions& options, bool skip_overflow);
  void check_unchanged() const;
  void set_point(Point point);
  void write_point(Point point);
  void register_hooks();
  void broadcast_parameters();
  void start_state_at_parameters();
  double averaging() const;
  void measure_grad_norm(std::optional<double> max_norm, bool skip_non_finite);
  void write_shard(int64_t bucket, Point point, const at::Tensor& out);
  void hand_over() noexcept;
  void finish_in_flight() noexcept;

  std::shared_ptr<Communicator> communicator_;
  std::unique_ptr<Algorithm> algorithm_;
  ShardingOptions sharding_;
  Model model_;
  Layout layout_;
  std::unique_ptr<Executor> executor_;  ///< before what lives on its device
  std::unique_ptr<FlatParameters> parameters_;
  std::unique_ptr<GradientReducer> reducer_;
  std::vector<ShardState> state_;
  std::unique_ptr<ShardUpdater> updater_;
  std::vector<GroupState> groups_;
  std::vector<GradientHook> hooks_;  ///< after what they call into, so that they go first
  std::unique_ptr<BufferSync> buffer_sync_;
  std::unique_ptr<Untrained> untrained_;
  std::unique_ptr<ParameterClaim> claim_;
  int64_t first_k_ = 0;  ///< steps that were done before this optimizer's own
  bool training_ = true;
  bool has_grad_norm_ = false;  ///< of the last step
  double grad_scale_ = 1;  ///< what makes the last step's summed gradient an average: 1/ranks, 1/loss scale
  Timings timings_;
  StepTimings step_timings_;
  int exceptions_at_start_;
};

}  // namespace zerosched::detail
