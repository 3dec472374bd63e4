#include <zerosched/clip_grad.h>
#include <zerosched/sharded_optimizer.h>

#include "base/check.h"
#include "comm/failure/whereabouts.h"
#include "engine/engine.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <exception>
#include <sstream>
#include <string>
#include <utility>

namespace zerosched {

EvalScope::EvalScope(std::shared_ptr<detail::Engine> engine)
    : engine_(std::move(engine)), exceptions_at_start_(std::uncaught_exceptions()) {}

EvalScope::EvalScope(EvalScope&& other) noexcept = default;

EvalScope::~EvalScope() noexcept(false) {
  if (!engine_ || !engine_->is_in_its_process()) return;
  const detail::InCall call("train()");
  if (std::uncaught_exceptions() <= exceptions_at_start_) engine_->train();
}

NoSync::NoSync(std::shared_ptr<detail::Engine> engine) : engine_(std::move(engine)) {
  engine_->enter_no_sync();
}

NoSync::NoSync(NoSync&& other) noexcept = default;

NoSync::~NoSync() {
  if (engine_) engine_->leave_no_sync();
}

// NOLINTBEGIN(performance-unnecessary-value-param): what constructors hand over is made for this
ShardedOptimizer::ShardedOptimizer(Trainable what, std::shared_ptr<Communicator> communicator,
    std::unique_ptr<torch::optim::OptimizerOptions> defaults, ShardingOptions sharding,
    std::unique_ptr<detail::Algorithm> (*make_algorithm)())
    // NOLINTEND(performance-unnecessary-value-param)
    : Optimizer(std::vector<torch::optim::OptimizerParamGroup>{}, std::move(defaults)) {
  ZEROSCHED_CHECK(communicator != nullptr,
      "the optimizer was given a null communicator; take Session::communicator(), or "
      "zerosched::self_communicator() for a single process.");
  const detail::InCall call("the optimizer's constructor");
  engine_ = std::make_shared<detail::Engine>(
      what, communicator->duplicate(), this->defaults(), sharding, make_algorithm());
  if (!what.module() && engine_->communicator()->rank() == 0) {
    TORCH_WARN_ONCE(
        "zerosched: an optimizer was constructed over parameter groups without their module, so it does "
        "not know the module's buffers, such as BatchNorm's running statistics: they are neither broadcast, "
        "nor "
        "saved in checkpoints and exports, nor loaded. Give it both: ",
        engine_->state().algorithm().name(), "(*module, groups, communicator).");
  }
  // Groups are checked by now, so LibTorch's own checks, which one rank could fail alone, all pass.
  for (const ParameterGroup& group : what.groups()) {
    std::vector<at::Tensor> parameters;
    for (const auto& named : group.named_parameters()) parameters.push_back(named.second);
    group_sizes_.push_back(parameters.size());
    Optimizer::add_param_group(
        {std::move(parameters), group.has_options() ? group.options().clone() : nullptr});
  }
  engine_->watch_options([this] { return group_options(); });
}

ShardedOptimizer::~ShardedOptimizer() {
  if (engine_ && !engine_->is_in_its_process()) {
    new std::shared_ptr(engine_);  // what its end would do is the parent's
    return;
  }
  const detail::InCall call("the optimizer's destructor");
  // Scopes keep the engine, but not the options.
  if (engine_) engine_->watch_options({});
}

detail::Engine& ShardedOptimizer::engine() const {
  engine_->check_not_replaced();
  return *engine_;
}

torch::Tensor ShardedOptimizer::step(LossClosure closure) {
  const detail::InCall call("step()");
  engine().check_can_step();
  check_param_groups();
  at::Tensor loss;
  if (closure) {
    const at::AutoGradMode with_gradients(true);
    loss = closure();
    engine_->set_loss(loss);
  }
  engine_->step(group_options());
  return loss;
}

void ShardedOptimizer::give_loss(const torch::Tensor& loss) { engine().set_loss(loss); }

void ShardedOptimizer::ready(at::TensorList parameters) { engine().ready(parameters); }

void ShardedOptimizer::ready(const NamedParameters& parameters) {
  if (!engine().may_be_in_flight()) return;
  std::vector<at::Tensor> tensors;
  for (const auto& named : parameters) tensors.push_back(named.second);
  engine_->ready(tensors);
}

std::shared_ptr<detail::StepOutcome> ShardedOptimizer::step_scaled(double loss_scale) {
  const detail::InCall call("GradScaler::step()");
  check_param_groups();
  return engine().step_scaled(group_options(), loss_scale);
}

void ShardedOptimizer::unscale(double loss_scale) { engine_->unscale(loss_scale); }

std::vector<torch::optim::OptimizerOptions*> ShardedOptimizer::group_options() {
  std::vector<torch::optim::OptimizerOptions*> options;
  for (auto& group : param_groups_) options.push_back(&group.options());
  return options;
}

// LibTorch's add_param_group() and add_parameters() are not virtual.
void ShardedOptimizer::check_param_groups() const {
  std::ostringstream change;
  if (param_groups_.size() != group_sizes_.size()) {
    change << "there are " << param_groups_.size() << " parameter groups";
  }
  for (size_t g = 0; g < group_sizes_.size() && change.tellp() == 0; ++g) {
    if (param_groups_[g].params().size() == group_sizes_[g]) continue;
    change << "parameter group " << g << " has " << param_groups_[g].params().size() << " parameters";
  }
  if (change.tellp() == 0) return;
  const auto& communicator = engine_->communicator();
  const std::string message = "rank " + std::to_string(communicator->rank()) + ": " + change.str() +
                              ", other than at construction, but the shards are cut then. Construct the "
                              "optimizer over all groups at once, with a vector of ParameterGroup.";
  communicator->abort(message);
  ZEROSCHED_CHECK(false, message);
}

void ShardedOptimizer::zero_grad(bool set_to_none) {
  const detail::InCall call("zero_grad()");
  engine().zero_grad(set_to_none);
}

void ShardedOptimizer::train() {
  const detail::InCall call("train()");
  engine().train();
}

void ShardedOptimizer::eval() {
  const detail::InCall call("eval()");
  engine().eval();
}

bool ShardedOptimizer::training() const { return engine().training(); }

EvalScope ShardedOptimizer::eval_scope() {
  const detail::InCall call("eval()");
  if (!engine().training()) return EvalScope(nullptr);
  engine_->eval();
  return EvalScope(engine_);
}

NoSync ShardedOptimizer::no_sync() {
  engine_->check_not_replaced();
  return NoSync(engine_);
}

void ShardedOptimizer::step_weight(double weight) { engine().step_weight(weight); }

void ShardedOptimizer::join() {
  const detail::InCall call("join()");
  check_param_groups();
  engine().join(group_options());
}

std::map<std::string, double> ShardedOptimizer::grad_norms() {
  const detail::InCall call("grad_norms()");
  return engine().grad_norms();
}

int64_t ShardedOptimizer::skipped_steps() const { return engine().skipped_steps(); }

double clip_grad_norm_(ShardedOptimizer& optimizer, double max_norm, double norm_type) {
  const detail::InCall call("clip_grad_norm_()");
  optimizer.check_param_groups();
  return optimizer.engine().clip_grad_norm(optimizer.group_options(), max_norm, norm_type);
}

void clip_grad_value_(ShardedOptimizer& optimizer, double clip_value) {
  const detail::InCall call("clip_grad_value_()");
  optimizer.check_param_groups();
  optimizer.engine().clip_grad_value(optimizer.group_options(), clip_value);
}

double ShardedOptimizer::grad_norm() {
  const detail::InCall call("grad_norm()");
  return engine().grad_norm();
}

int64_t ShardedOptimizer::state_bytes() const { return engine().state_bytes(); }

std::map<std::string, at::Tensor> ShardedOptimizer::full_state(const std::string& which) {
  const detail::InCall call("full_state()");
  return engine().full_state(which);
}

void ShardedOptimizer::reset_from_parameters() {
  const detail::InCall call("reset_from_parameters()");
  engine().reset_from_parameters();
}

Timings ShardedOptimizer::timings() const { return engine().timings(); }

TimingReport ShardedOptimizer::timing_report() {
  const detail::InCall call("timing_report()");
  return engine().timing_report();
}

std::shared_ptr<Communicator> ShardedOptimizer::communicator() const { return engine().communicator(); }

void ShardedOptimizer::add_param_group(const torch::optim::OptimizerParamGroup&) {
  ZEROSCHED_CHECK(false,
      "add_param_group() after construction: the parameters are cut into shards when the optimizer is "
      "constructed. Construct it over all groups at once, with a vector of ParameterGroup.");
}

}  // namespace zerosched
