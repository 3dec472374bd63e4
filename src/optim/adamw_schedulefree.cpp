#include "kernels/kernels.h"
#include "optim/algorithm.h"
#include "optim/checks.h"

#include <zerosched/adamw_schedulefree.h>

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <sstream>
#include <utility>

namespace zerosched {
namespace detail {
namespace {

class AdamWScheduleFreeAlgorithm final : public Algorithm {
 public:
  const std::vector<StateTensor>& state() const override {
    static const std::vector<StateTensor> tensors = {{"z", true}, {"x", true}, {"v", false}};
    return tensors;
  }

  void check(const torch::optim::OptimizerOptions& options) const override {
    const auto& o = options_as<AdamWScheduleFreeOptions>(options, "AdamWScheduleFree");
    const auto [beta1, beta2] = o.betas();
    check_non_negative("lr", o.lr());
    TORCH_CHECK(beta1 >= 0 && beta1 <= 1, "betas: beta1 must be in [0, 1], got ", beta1, ".");
    TORCH_CHECK(beta2 >= 0 && beta2 < 1, "betas: beta2 must be in [0, 1), got ", beta2, ".");
    check_non_negative("eps", o.eps());
    check_non_negative("weight_decay", o.weight_decay());
    TORCH_CHECK(o.warmup_steps() >= 0, "warmup_steps must not be negative, got ", o.warmup_steps(), ".");
    TORCH_CHECK(std::isfinite(o.r()), "r must be finite, got ", o.r(), ".");
    TORCH_CHECK(std::isfinite(o.weight_lr_power()), "weight_lr_power must be finite, got ",
                o.weight_lr_power(), ".");
  }

  std::string describe(const torch::optim::OptimizerOptions& options) const override {
    const auto& o = options_as<AdamWScheduleFreeOptions>(options, "AdamWScheduleFree");
    std::ostringstream out;
    out << std::setprecision(17) << "AdamWScheduleFree(lr=" << o.lr() << ", betas=("
        << std::get<0>(o.betas()) << ", " << std::get<1>(o.betas()) << "), eps=" << o.eps()
        << ", weight_decay=" << o.weight_decay() << ", warmup_steps=" << o.warmup_steps()
        << ", r=" << o.r() << ", weight_lr_power=" << o.weight_lr_power() << ")";
    return out.str();
  }

  PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const override {
    const auto& o = options_as<AdamWScheduleFreeOptions>(options, "AdamWScheduleFree");
    const auto [beta1, beta2] = o.betas();
    const auto step = static_cast<double>(state.k + 1);
    const double sched =
        state.k < o.warmup_steps() ? step / static_cast<double>(o.warmup_steps()) : 1.0;

    PreparedStep prepared;
    kernels::ScheduleFreeScalars& s = prepared.scalars;
    s.lr = o.lr() * sched;
    s.beta2 = beta2;
    s.bias_correction2 = 1 - std::pow(beta2, step);
    s.eps = o.eps();
    s.weight_decay = o.weight_decay();
    s.y_weight_before = state.y_weight;
    s.y_weight = 1 - beta1;

    prepared.next = state;
    prepared.next.lr_max = std::max(state.lr_max, s.lr);
    double weight = std::pow(step, o.r()) * std::pow(prepared.next.lr_max, o.weight_lr_power());
    if (prepared.next.lr_max == 0 && o.weight_lr_power() < 0) weight = 0;  // not infinity
    prepared.next.weight_sum = state.weight_sum + weight;
    // lr = 0 so far: nothing has weight yet, and 0/0 must not reach x.
    s.c = prepared.next.weight_sum == 0 ? 0 : weight / prepared.next.weight_sum;
    prepared.next.k = state.k + 1;
    prepared.next.y_weight = s.y_weight;
    return prepared;
  }

  void update(const ShardRange& range, const kernels::ScheduleFreeScalars& scalars) const override {
    kernels::adamw_schedule_free(
        {range.param_dtype, range.grad_dtype, range.parameters, range.gradients, range.state[0],
         range.state[1], range.state[2], range.numel},
        scalars);
  }

  void write_parameters(const ShardRange& range, Point point, const GroupState& state) const override {
    kernels::interpolate(range.param_dtype, range.parameters, range.state[1], range.state[0],
                         point == Point::y ? state.y_weight : 0.0, range.numel);
  }
};

}  // namespace
}  // namespace detail

AdamWScheduleFreeOptions::AdamWScheduleFreeOptions(double lr) : lr_(lr) {}

double AdamWScheduleFreeOptions::get_lr() const { return lr(); }

void AdamWScheduleFreeOptions::set_lr(double value) { lr(value); }

AdamWScheduleFree::AdamWScheduleFree(
    const torch::nn::Module& module,
    std::shared_ptr<Communicator> communicator,
    AdamWScheduleFreeOptions options,
    ShardingOptions sharding)
    : ShardedOptimizer(
          groups_of(module), buffers_of(module), std::move(communicator),
          std::make_unique<AdamWScheduleFreeOptions>(options), std::move(sharding),
          std::make_unique<detail::AdamWScheduleFreeAlgorithm>()) {}

AdamWScheduleFree::AdamWScheduleFree(
    std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator,
    AdamWScheduleFreeOptions options,
    ShardingOptions sharding)
    : ShardedOptimizer(
          std::move(groups), {}, std::move(communicator),
          std::make_unique<AdamWScheduleFreeOptions>(options), std::move(sharding),
          std::make_unique<detail::AdamWScheduleFreeAlgorithm>()) {}

}  // namespace zerosched
