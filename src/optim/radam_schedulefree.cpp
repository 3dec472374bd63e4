#include "optim/checks.h"
#include "optim/schedule_free.h"

#include <zerosched/radam_schedulefree.h>

#include <cmath>
#include <memory>
#include <utility>

namespace zerosched {
namespace detail {
namespace {

class RAdamScheduleFreeAlgorithm final : public ScheduleFreeAlgorithm {
 public:
  const char* name() const override { return "RAdamScheduleFree"; }
  kernels::Rule rule() const override { return kernels::Rule::adamw_schedule_free; }

  const std::vector<StateTensor>& state() const override {
    static const std::vector<StateTensor> tensors = {{"z", true}, {"x", true}, {"v", false}};
    return tensors;
  }

  void check(const torch::optim::OptimizerOptions& options) const override {
    const auto& o = options_as<RAdamScheduleFreeOptions>(options, name());
    check_non_negative("lr", o.lr());
    check_fraction("betas: beta1", std::get<0>(o.betas()));
    check_decay("betas: beta2", std::get<1>(o.betas()));
    check_non_negative("eps", o.eps());
    check_non_negative("weight_decay", o.weight_decay());
    check_finite("r", o.r());
    check_finite("weight_lr_power", o.weight_lr_power());
  }

  std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const override {
    auto& o = options_as<RAdamScheduleFreeOptions>(options, name());
    return {{"lr", &o.lr()}, {"beta1", &std::get<0>(o.betas())}, {"beta2", &std::get<1>(o.betas())},
        {"eps", &o.eps()}, {"weight_decay", &o.weight_decay()}, {"r", &o.r()},
        {"weight_lr_power", &o.weight_lr_power()}, {"silent_sgd_phase", &o.silent_sgd_phase()}};
  }

  // The rectification of RAdam, arXiv 1908.03265, algorithm 2: rho is the length of the simple moving average
  // that v stands for; up to 4 its variance is not finite.
  PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const override {
    const auto& o = options_as<RAdamScheduleFreeOptions>(options, name());
    const auto [beta1, beta2] = o.betas();
    const auto step = static_cast<double>(state.k + 1);
    const double decayed = std::pow(beta2, step);
    const double longest = 2 / (1 - beta2) - 1;
    const double rho = longest - 2 * step * decayed / (1 - decayed);

    PreparedStep prepared;
    kernels::StepScalars& s = prepared.scalars;
    s.adaptive = rho > 4;
    const double rectification =
        s.adaptive ? std::sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
                   : (o.silent_sgd_phase() ? 0.0 : 1.0);
    s.lr = o.lr() * rectification;
    s.beta2 = beta2;
    s.bias_correction2 = 1 - decayed;
    s.eps = o.eps();
    s.weight_decay = o.weight_decay();
    average(prepared, state, beta1, o.r(), o.weight_lr_power());
    return prepared;
  }
};

}  // namespace
}  // namespace detail

RAdamScheduleFreeOptions::RAdamScheduleFreeOptions(double lr) : lr_(lr) {}

double RAdamScheduleFreeOptions::get_lr() const { return lr(); }

void RAdamScheduleFreeOptions::set_lr(double lr) { this->lr(lr); }

RAdamScheduleFree::RAdamScheduleFree(Trainable what, std::shared_ptr<Communicator> communicator,
    RAdamScheduleFreeOptions options, ShardingOptions sharding)
    : ShardedOptimizer(std::move(what), std::move(communicator),
          std::make_unique<RAdamScheduleFreeOptions>(std::move(options)), std::move(sharding),
          std::make_unique<detail::RAdamScheduleFreeAlgorithm>()) {}

RAdamScheduleFree::RAdamScheduleFree(const Trainable& module, std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator, RAdamScheduleFreeOptions options, ShardingOptions sharding)
    : RAdamScheduleFree(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
          std::move(sharding)) {}

}  // namespace zerosched
