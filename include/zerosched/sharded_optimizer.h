#pragma once

#include <zerosched/checkpoint.h>
#include <zerosched/communicator.h>
#include <zerosched/error.h>
#include <zerosched/export.h>
#include <zerosched/parameter_group.h>
#include <zerosched/sharding_options.h>
#include <zerosched/timings.h>
#include <zerosched/trainable.h>

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace zerosched {

namespace detail {
class Algorithm;
class Engine;
struct StepOutcome;
}  // namespace detail

/// Parameters are x while one of these lives, and y again, bit for bit, when it ends. Made by eval_scope().
///
/// Its end is ShardedOptimizer::train(), a collective. While an exception unwinds it does nothing, so that
/// no rank waits in a destructor: the optimizer stays in eval mode, and the next train() brings y back.
class ZEROSCHED_EXPORT EvalScope {
 public:
  ~EvalScope() noexcept(false);
  /// Takes over what is to be done at the end.
  EvalScope(EvalScope&& other) noexcept;
  EvalScope(const EvalScope&) = delete;
  EvalScope& operator=(const EvalScope&) = delete;
  EvalScope& operator=(EvalScope&&) = delete;

 private:
  friend class ShardedOptimizer;
  explicit EvalScope(std::shared_ptr<detail::Engine> engine);
  std::shared_ptr<detail::Engine> engine_;  // null: nothing to do at the end
  int exceptions_at_start_;
};

/// Backward passes accumulate gradients locally, without communication, while one of these lives.
/// Made by no_sync(). Gradients of bfloat16 parameters are summed in float32 meanwhile. In compatible mode it
/// changes nothing: there .grad accumulates anyway, in the parameter's dtype.
class ZEROSCHED_EXPORT NoSync {
 public:
  ~NoSync();
  /// Takes over what is to be done at the end.
  NoSync(NoSync&& other) noexcept;
  NoSync(const NoSync&) = delete;
  NoSync& operator=(const NoSync&) = delete;
  NoSync& operator=(NoSync&&) = delete;

 private:
  friend class ShardedOptimizer;
  explicit NoSync(std::shared_ptr<detail::Engine> engine);
  std::shared_ptr<detail::Engine> engine_;
};

/// What all sharded optimizers share: a torch::optim::Optimizer whose state is cut over the ranks of a
/// communicator, and which averages gradients over them.
///
/// Every rank holds the whole model; the state (for Schedule-Free z, x and v) is cut into size() equal
/// shards. The optimizer works on a duplicate of the communicator it is given. Unless said otherwise a
/// member function is collective: every rank calls it, in the same order.
///
/// Construction moves the parameters' data into the optimizer's flat buffers (sizes, strides, hooks and
/// names stay); destruction gives them storage of their own again. So no parameter may share memory with another
/// tensor of the model, but one tensor may be registered under several names (tied weights).
///
/// A parameter belongs to one optimizer at a time. One that is constructed over exactly the parameters of another
/// replaces it, as in `optimizer = std::make_unique<...>(...)`: the other drops gradients in flight, and from then
/// on throws at every call. Any other overlap is an error at construction, on every rank.
///
/// What goes wrong is an Error: what ranks tell each other, in a step or beside it, a CommunicationError on every rank, which
/// the optimizer throws from then on; what a checkpoint or file is the reason of, a CheckpointError.
///
/// Ranks that call what a rank whose optimizer is gone will not take part in throw at once, and say which rank that is and
/// after how many steps: see join(). If no rank does, as where all have caught the same exception, nothing has failed.
class ZEROSCHED_EXPORT ShardedOptimizer : public torch::optim::Optimizer {
 public:
  ~ShardedOptimizer() override;

  /// Updates the parameters from the gradients of the backward passes since the last step.
  /// A closure is evaluated first, with gradients enabled. Throws in eval mode, and if an option is out of range.
  ///
  /// The options in param_groups() are read at every step and must be the same on every rank: a scheduler that looks at
  /// a metric needs one that is averaged over ranks. Rank 0's travel with the gradients, and a rank whose own differ
  /// gives an error on every rank, in this step if they were set before backward and on the CPU, else in the next
  /// step, eval() or save. Differences in the last bits, as unlike processors make them in a cosine, are none: then every
  /// rank steps with rank 0's.
  torch::Tensor step(LossClosure closure = nullptr) override;

  /// With ShardingOptions::overlap_forward: has what follows come after the last step's y is in these parameters. On the CPU
  /// the call returns once it is; on a GPU the current stream waits, and others do not. Waits for the buckets of these
  /// parameters alone, so it is to be called bit by bit, with each block of a model right before its forward.
  ///
  /// Local: any number of times, in any order, from any thread. Takes microseconds for what is there already, and does
  /// nothing without the option. What this optimizer does not train is passed over: buffers, frozen parameters, those of
  /// other optimizers. A tied weight may be named by any of its modules. Parameters are known by their identity, also after
  /// set_data(); a view of one is not it.
  ///
  /// Throws what the last step's collectives have come to, where a rank has failed, and if one of the parameters was written
  /// since step() without waiting for it: by then it may hold parts of both values. On a GPU throws while the current stream
  /// is being captured into a CUDA graph: call it with all of the model before each replay.
  void ready(const torch::nn::Module& module);
  /// The same of a TorchScript module.
  void ready(const torch::jit::Module& module);
  /// The same of parameters by name, as groups have them; the names do not matter.
  void ready(const NamedParameters& parameters);
  /// The same of one tensor or a list of them.
  void ready(at::TensorList parameters);

  /// Drops gradients. Local while none has arrived since the last step, otherwise collective. In overlapping
  /// mode .grad is undefined anyway, so `set_to_none` matters in compatible mode only. Called through
  /// torch::optim::Optimizer&, or by the module, zero_grad() is LibTorch's own: it sees .grad and no bucket.
  void zero_grad(bool set_to_none = true);

  /// Parameters := y, where gradients are taken. The mode after construction. Does nothing in train mode, but waits for y
  /// with ShardingOptions::overlap_forward.
  /// Throws on every rank if a gradient has arrived in eval mode, or a parameter was replaced or written.
  void train();
  /// Parameters := x, what is evaluated and shipped; buffers of the module := rank 0's where ranks differ, see
  /// ShardingOptions::broadcast_buffers. Does nothing in eval mode. Throws on every rank between backward and step()
  /// in overlapping mode, or if a parameter was replaced or written.
  ///
  /// Here and before checkpoints and exports rank 0 warns, once, of what was registered in the module or replaced
  /// there since construction, and of parameters that no rank has had a gradient of in any step.
  void eval();
  /// Local.
  bool training() const;
  /// eval() now, train() when the returned object ends; if already in eval mode, neither.
  [[nodiscard]] EvalScope eval_scope();

  /// The weight of this rank's gradient in the average of this step: the number of samples, or tokens, that its loss is
  /// the mean over. Then the averaged gradient is sum_r w_r g_r / sum_r w_r, that of the mean over all samples. 0: this
  /// rank has no data, and what backward leaves, were it NaN, does not count. The sum of the weights travels with the
  /// gradients. Without it every rank weighs 1. If no rank has data the step changes nothing.
  ///
  /// Local, and for one step: to be called on every rank or on none, before the backward that is not under no_sync().
  /// Throws if the weight is negative or not finite, after gradients have left, and with already_averaged gradients. With
  /// gradients that are reduced in a 16-bit type weights are counted in 65536ths and must be below 2^32.
  void step_weight(double weight);

  /// For a rank that has run out of batches: takes part in the steps of the others, with weight 0, until every rank has
  /// called it; then all return. The ranks with data clip and step as always; it makes no difference here with which
  /// options, scales and norms, since they are the others'. Between the first rank's join() and the last one's no other
  /// collective of this optimizer, or of the trainer, is possible.
  ///
  /// What the others' step throws it throws as well; call it again if they go on. With a GradScaler call
  /// GradScaler::join().
  ///
  /// Collective in the sense that every rank calls it once. Throws if this rank has gradients that no step has used, and
  /// with already_averaged gradients. On a GPU every step has to be given its step_weight() for others to see who has
  /// joined.
  void join();

  /// Local; every rank must make the same backward passes under it.
  [[nodiscard]] NoSync no_sync();

  /// L2 norm of the last step's averaged gradient, before clipping. Collective, unless max_grad_norm or a
  /// GradScaler had it computed: then it is known. Otherwise throws on every rank before the first step, once
  /// the next backward has begun, and where .grad, if it is still the step's own, has been changed since.
  double grad_norm();

  /// L2 norm of each parameter's part of the last step's averaged gradient, before it was clipped by norm; 0 of
  /// parameters that no rank used. For logging: a pass over this rank's share of the gradient and an all-reduce of a
  /// number per parameter. Collective. Throws on every rank where grad_norm() would.
  std::map<std::string, double> grad_norms();

  /// Steps that were left out because a gradient was not finite: by GradScaler, or with NonFinite::skip. Local.
  int64_t skipped_steps() const;

  /// Bytes of optimizer state on this rank, padding included. Local.
  int64_t state_bytes() const;

  /// Whole tensors by parameter name, on the CPU, in the parameters' shapes: "z", "x", "v" (or what else the
  /// optimizer's class says is its state) in float32, float64 for float64 parameters; or "y" in the
  /// parameter's dtype. Throws on every rank if it has no such state, and between backward and step() in
  /// overlapping mode.
  std::map<std::string, at::Tensor> full_state(const std::string& which);

  /// Takes rank 0's parameters, as they are now, as the new x = z = y: after loading weights or editing them.
  /// v, k and lr_max are kept, weight_sum becomes 0. Parameters that are not trained and the module's buffers
  /// become rank 0's too. Throws on every rank if a parameter's shape, strides, dtype or device has changed.
  ///
  /// Until then a parameter that was loaded, moved or written is an error on every rank at the next step(), eval(),
  /// train() or save; unless its bits are what they were, as after an evaluation with other weights that were swapped in
  /// and out. Writes through Tensor::data() or a raw pointer leave no trace but the bits: those are compared in the
  /// first steps and ever more rarely later (steps 1, 2, 3, 5, 9, 17, ...), and at every eval(), train() and save.
  /// After such an error this function sets the optimizer right. Only an edit between backward and step(), with other
  /// ranks, is told too late for that: then the optimizer gives up.
  void reset_from_parameters();

  /// Saves the state between two steps as folder `dir`: z, x and v of every rank under the parameters' names,
  /// the scalars and options of each group, parameters that are not trained, the module's buffers (which become
  /// rank 0's first, see ShardingOptions::broadcast_buffers), and what the trainer adds. It loads at any world size
  /// and with any bucket size.
  ///
  /// Collective; `dir` must be the same folder on every rank, on a file system that all of them share. Every
  /// rank writes its shard. The folder is written under a temporary name beside `dir`, synced and then
  /// renamed, so that `dir` is a whole checkpoint or none, whenever the job is killed; a checkpoint that was
  /// at `dir` is replaced, but nothing else is, and not that of another optimizer of this job or of a job on this
  /// machine that still runs. Last of all `latest` beside `dir` is made to name it: a link, or a file where there are no
  /// links. What killed jobs have left beside `dir` is taken up or deleted. Throws a CheckpointError on every rank, naming
  /// the rank and the reason, if anything fails; then no trace is left, and older checkpoints are untouched. What goes wrong
  /// once `dir` is the new checkpoint rank 0 warns of.
  ///
  /// One process at a time saves to a folder and the next one waits; after five minutes it throws and names the other.
  void save_checkpoint(
      const std::string& dir, const CheckpointExtra& extra = {}, const CheckpointOptions& options = {});

  /// Takes up the state that save_checkpoint() left in `dir`: z, x, v, the scalars and options of each group,
  /// parameters that are not trained, and buffers. Parameters become y or x, whichever mode this optimizer is in.
  /// What another optimizer of this process trains is left to that one. Returns what the trainer added. `dir` may also be
  /// a `latest`.
  ///
  /// Collective. The optimizer must be of the same class, over parameters of the same names, shapes and
  /// groups. Checksums are verified first, so bytes are read twice; memory stays near the state's own. Throws
  /// a CheckpointError on every rank, naming the file or parameter, if something is missing, damaged or does not fit; then
  /// nothing has changed. Should the file system fail after that, or another job delete `dir`, the optimizer is unusable
  /// and says so at every call. If another job replaces `dir` meanwhile, the old checkpoint or the new one is loaded.
  CheckpointExtra load_checkpoint(const std::string& dir);
  /// The same with options: LoadOptions().partial(true) takes what fits, and the result says what that was.
  LoadedCheckpoint load_checkpoint(const std::string& dir, const LoadOptions& options);

  /// Of the last step of this rank. Local.
  Timings timings() const;

  /// Of every rank, the mean and the worst over all steps since the last report, or since construction: which
  /// rank the others wait for. Steps themselves send nothing for it. Throws on every rank between backward
  /// and step() in overlapping mode.
  TimingReport timing_report();

  /// The duplicate that this optimizer communicates over, for its traffic(). Local.
  std::shared_ptr<Communicator> communicator() const;

  /// Not possible after construction, because the shards are cut then: throws, and says what to do. Groups or
  /// parameters added through torch::optim::Optimizer& are an error at the next step(). Local.
  void add_param_group(const torch::optim::OptimizerParamGroup& group);

  /// What torch::save calls. Throws, because a rank holds a part of the state only: see save_checkpoint(). Local.
  void save(torch::serialize::OutputArchive& archive) const override;
  /// What torch::load calls. Throws too: see load_checkpoint(). Local.
  void load(torch::serialize::InputArchive& archive) override;

 protected:
  /// This rank's loss, of one element, to an optimizer whose next step depends on it. Local.
  void give_loss(const torch::Tensor& loss);

  /// What the optimizers' own constructors come down to. Collective.
  ShardedOptimizer(Trainable what, std::shared_ptr<Communicator> communicator,
      std::unique_ptr<torch::optim::OptimizerOptions> defaults, ShardingOptions sharding,
      std::unique_ptr<detail::Algorithm> (*make_algorithm)());

 private:
  friend class GradScaler;
  friend ZEROSCHED_EXPORT double clip_grad_norm_(ShardedOptimizer&, double, double);
  friend ZEROSCHED_EXPORT void clip_grad_value_(ShardedOptimizer&, double);
  friend ZEROSCHED_EXPORT void export_safetensors(ShardedOptimizer&, const std::string&, const std::string&);
  friend ZEROSCHED_EXPORT void import_safetensors(ShardedOptimizer&, const std::string&);
  friend ZEROSCHED_EXPORT void save_checkpoint(const std::string&, const std::vector<ShardedOptimizer*>&,
      const CheckpointExtra&, const CheckpointOptions&);
  friend ZEROSCHED_EXPORT LoadedCheckpoint load_checkpoint(
      const std::string&, const std::vector<ShardedOptimizer*>&, const LoadOptions&);
  std::shared_ptr<detail::StepOutcome> step_scaled(double loss_scale);
  void unscale(double loss_scale);
  std::vector<torch::optim::OptimizerOptions*> group_options();
  void check_param_groups() const;
  detail::Engine& engine() const;  ///< throws if another optimizer has replaced this one

  std::shared_ptr<detail::Engine> engine_;
  std::vector<size_t> group_sizes_;  ///< parameters given per group; more that come later have no shard
};

}  // namespace zerosched
