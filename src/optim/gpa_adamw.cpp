#include "optim/checks.h"
#include "optim/schedule_free.h"

#include <zerosched/gpa_adamw.h>

#include <cmath>
#include <memory>
#include <utility>

namespace zerosched {
namespace detail {
namespace {

class GPAAdamWAlgorithm final : public ScheduleFreeAlgorithm {
 public:
  const char* name() const override { return "GPAAdamW"; }
  kernels::Rule rule() const override { return kernels::Rule::adamw_schedule_free_momentum; }

  const std::vector<StateTensor>& state() const override {
    static const std::vector<StateTensor> tensors = {{"z", true}, {"x", true}, {"m", false}, {"v", false}};
    return tensors;
  }

  void check(const torch::optim::OptimizerOptions& options) const override {
    const auto& o = options_as<GPAAdamWOptions>(options, name());
    check_non_negative("lr", o.lr());
    check_decay("betas: beta1", std::get<0>(o.betas()));
    check_decay("betas: beta2", std::get<1>(o.betas()));
    check_non_negative("eps", o.eps());
    check_non_negative("weight_decay", o.weight_decay());
    check_fraction("train_interp_coeff", o.train_interp_coeff());
    check_decay("eval_interp_coeff", o.eval_interp_coeff());
    TORCH_CHECK(o.warmup_steps() >= 0, "warmup_steps must not be negative, got ", o.warmup_steps(), ".");
  }

  std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const override {
    auto& o = options_as<GPAAdamWOptions>(options, name());
    return {{"lr", &o.lr()}, {"beta1", &std::get<0>(o.betas())}, {"beta2", &std::get<1>(o.betas())},
        {"eps", &o.eps()}, {"weight_decay", &o.weight_decay()},
        {"train_interp_coeff", &o.train_interp_coeff()}, {"eval_interp_coeff", &o.eval_interp_coeff()},
        {"warmup_steps", &o.warmup_steps()}};
  }

  PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const override {
    const auto& o = options_as<GPAAdamWOptions>(options, name());
    const auto step = static_cast<double>(state.k + 1);
    PreparedStep prepared;
    kernels::StepScalars& s = prepared.scalars;
    s.lr = o.lr() * warmup(state, o.warmup_steps());
    s.beta1 = std::get<0>(o.betas());
    s.beta2 = std::get<1>(o.betas());
    s.bias_correction1 = 1 - std::pow(s.beta1, step);
    s.bias_correction2 = 1 - std::pow(s.beta2, step);
    s.eps = o.eps();
    s.z_shrink = 1 - s.lr * o.weight_decay();
    s.c = 1 - o.eval_interp_coeff();
    s.y_weight_before = state.y_weight;
    s.y_weight = 1 - o.train_interp_coeff();
    prepared.next = state;
    prepared.next.k = state.k + 1;
    prepared.next.y_weight = s.y_weight;
    return prepared;
  }
};

}  // namespace
}  // namespace detail

GPAAdamWOptions::GPAAdamWOptions(double lr) : lr_(lr) {}

double GPAAdamWOptions::get_lr() const { return lr(); }

void GPAAdamWOptions::set_lr(double lr) { this->lr(lr); }

GPAAdamW::GPAAdamW(Trainable what, std::shared_ptr<Communicator> communicator, GPAAdamWOptions options,
    ShardingOptions sharding)
    : ShardedOptimizer(std::move(what), std::move(communicator),
          std::make_unique<GPAAdamWOptions>(std::move(options)), std::move(sharding),
          std::make_unique<detail::GPAAdamWAlgorithm>()) {}

GPAAdamW::GPAAdamW(const Trainable& module, std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator, GPAAdamWOptions options, ShardingOptions sharding)
    : GPAAdamW(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
          std::move(sharding)) {}

}  // namespace zerosched
