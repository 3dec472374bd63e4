#include "optim/algorithm.h"
#include "optim/checks.h"

#include <zerosched/adamw.h>

#include <cmath>
#include <memory>
#include <utility>

namespace zerosched {
namespace detail {
namespace {

class AdamWAlgorithm final : public Algorithm {
 public:
  const char* name() const override { return "AdamW"; }
  kernels::Rule rule() const override { return kernels::Rule::adamw; }

  const std::vector<StateTensor>& state() const override {
    static const std::vector<StateTensor> tensors = {{"x", true}, {"m", false}, {"v", false}};
    return tensors;
  }

  void check(const torch::optim::OptimizerOptions& options) const override {
    const auto& o = options_as<AdamWOptions>(options, name());
    check_non_negative("lr", o.lr());
    check_decay("betas: beta1", std::get<0>(o.betas()));
    check_decay("betas: beta2", std::get<1>(o.betas()));
    check_non_negative("eps", o.eps());
    check_non_negative("weight_decay", o.weight_decay());
  }

  std::vector<OptionField> fields(torch::optim::OptimizerOptions& options) const override {
    auto& o = options_as<AdamWOptions>(options, name());
    return {{"lr", &o.lr()}, {"beta1", &std::get<0>(o.betas())}, {"beta2", &std::get<1>(o.betas())},
        {"eps", &o.eps()}, {"weight_decay", &o.weight_decay()}};
  }

  PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const override {
    const auto& o = options_as<AdamWOptions>(options, name());
    const auto step = static_cast<double>(state.k + 1);
    PreparedStep prepared;
    kernels::StepScalars& s = prepared.scalars;
    s.lr = o.lr();
    s.beta1 = std::get<0>(o.betas());
    s.beta2 = std::get<1>(o.betas());
    s.bias_correction1 = 1 - std::pow(s.beta1, step);
    s.bias_correction2 = 1 - std::pow(s.beta2, step);
    s.eps = o.eps();
    s.weight_decay = o.weight_decay();
    prepared.next = state;
    prepared.next.k = state.k + 1;
    return prepared;
  }

  Interpolation interpolation(Point, const GroupState&) const override { return {0, 0, 0.0}; }
};

}  // namespace
}  // namespace detail

AdamWOptions::AdamWOptions(double lr) : lr_(lr) {}

double AdamWOptions::get_lr() const { return lr(); }

void AdamWOptions::set_lr(double lr) { this->lr(lr); }

AdamW::AdamW(Trainable what, std::shared_ptr<Communicator> communicator, AdamWOptions options,
    ShardingOptions sharding)
    : ShardedOptimizer(std::move(what), std::move(communicator),
          std::make_unique<AdamWOptions>(std::move(options)), std::move(sharding),
          std::make_unique<detail::AdamWAlgorithm>()) {}

AdamW::AdamW(const Trainable& module, std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator, AdamWOptions options, ShardingOptions sharding)
    : AdamW(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
          std::move(sharding)) {}

}  // namespace zerosched
