#include "optim/checks.h"
#include "optim/schedule_free.h"

#include <zerosched/sgd_schedulefree.h>

#include <cmath>
#include <memory>
#include <utility>

namespace zerosched {
namespace detail {
namespace {

class SGDScheduleFreeAlgorithm final : public ScheduleFreeAlgorithm {
 public:
  const char* name() const override { return "SGDScheduleFree"; }
  kernels::Rule rule() const override { return kernels::Rule::sgd_schedule_free; }

  const std::vector<StateTensor>& state() const override {
    static const std::vector<StateTensor> tensors = {{"z", true}, {"x", true}};
    return tensors;
  }

  void check(const torch::optim::OptimizerOptions& options) const override {
    const auto& o = options_as<SGDScheduleFreeOptions>(options, name());
    check_non_negative("lr", o.lr());
    check_fraction("momentum", o.momentum());
    check_non_negative("weight_decay", o.weight_decay());
    TORCH_CHECK(o.warmup_steps() >= 0, "warmup_steps must not be negative, got ", o.warmup_steps(), ".");
    check_finite("r", o.r());
    check_finite("weight_lr_power", o.weight_lr_power());
  }

  std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const override {
    auto& o = options_as<SGDScheduleFreeOptions>(options, name());
    return {{"lr", &o.lr()}, {"momentum", &o.momentum()}, {"weight_decay", &o.weight_decay()},
        {"warmup_steps", &o.warmup_steps()}, {"r", &o.r()}, {"weight_lr_power", &o.weight_lr_power()}};
  }

  PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const override {
    const auto& o = options_as<SGDScheduleFreeOptions>(options, name());
    PreparedStep prepared;
    prepared.scalars.lr = o.lr() * warmup(state, o.warmup_steps());
    prepared.scalars.weight_decay = o.weight_decay();
    average(prepared, state, o.momentum(), o.r(), o.weight_lr_power());
    return prepared;
  }
};

}  // namespace
}  // namespace detail

SGDScheduleFreeOptions::SGDScheduleFreeOptions(double lr) : lr_(lr) {}

double SGDScheduleFreeOptions::get_lr() const { return lr(); }

void SGDScheduleFreeOptions::set_lr(double lr) { this->lr(lr); }

SGDScheduleFree::SGDScheduleFree(Trainable what, std::shared_ptr<Communicator> communicator,
    SGDScheduleFreeOptions options, ShardingOptions sharding)
    : ShardedOptimizer(std::move(what), std::move(communicator),
          std::make_unique<SGDScheduleFreeOptions>(std::move(options)), std::move(sharding),
          std::make_unique<detail::SGDScheduleFreeAlgorithm>()) {}

SGDScheduleFree::SGDScheduleFree(const Trainable& module, std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator, SGDScheduleFreeOptions options, ShardingOptions sharding)
    : SGDScheduleFree(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
          std::move(sharding)) {}

}  // namespace zerosched
