#include "optim/algorithm.h"
#include "optim/checks.h"

#include <zerosched/sgd.h>

#include <memory>
#include <utility>

namespace zerosched {
namespace detail {
namespace {

class SGDAlgorithm final : public Algorithm {
 public:
  const char* name() const override { return "SGD"; }
  kernels::Rule rule() const override { return kernels::Rule::sgd; }

  const std::vector<StateTensor>& state() const override {
    static const std::vector<StateTensor> tensors = {{"x", true}, {"m", false}};
    return tensors;
  }

  void check(const torch::optim::OptimizerOptions& options) const override {
    const auto& o = options_as<SGDOptions>(options, name());
    check_non_negative("lr", o.lr());
    check_non_negative("momentum", o.momentum());
    check_non_negative("weight_decay", o.weight_decay());
    TORCH_CHECK(!o.nesterov() || o.momentum() > 0, "nesterov needs a momentum above 0.");
  }

  std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const override {
    auto& o = options_as<SGDOptions>(options, name());
    return {{"lr", &o.lr()}, {"momentum", &o.momentum()}, {"weight_decay", &o.weight_decay()},
        {"nesterov", &o.nesterov()}};
  }

  PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const override {
    const auto& o = options_as<SGDOptions>(options, name());
    PreparedStep prepared;
    kernels::StepScalars& s = prepared.scalars;
    s.lr = o.lr();
    s.beta1 = o.momentum();
    s.weight_decay = o.weight_decay();
    s.nesterov = o.nesterov();
    prepared.next = state;
    prepared.next.k = state.k + 1;
    return prepared;
  }

  Interpolation interpolation(Point, const GroupState&) const override { return {0, 0, 0.0}; }
};

}  // namespace
}  // namespace detail

SGDOptions::SGDOptions(double lr) : lr_(lr) {}

double SGDOptions::get_lr() const { return lr(); }

void SGDOptions::set_lr(double lr) { this->lr(lr); }

SGD::SGD(
    Trainable what, std::shared_ptr<Communicator> communicator, SGDOptions options, ShardingOptions sharding)
    : ShardedOptimizer(std::move(what), std::move(communicator),
          std::make_unique<SGDOptions>(std::move(options)), std::move(sharding),
          std::make_unique<detail::SGDAlgorithm>()) {}

SGD::SGD(const Trainable& module, std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator, SGDOptions options, ShardingOptions sharding)
    : SGD(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
          std::move(sharding)) {}

}  // namespace zerosched
