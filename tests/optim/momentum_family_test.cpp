// The relatives of Schedule-Free AdamW that no Python package at hand has, against their formulas. What all optimizers
// have in common is in family_test.cpp.
#include "engine/toy.h"
#include "optim/momentum_reference.h"
#include "support/world.h"

#include <zerosched/zerosched.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::testing {
namespace {

using OptimizerMaker =
    std::function<std::unique_ptr<ShardedOptimizer>(const NamedParameters&, const ShardingOptions&)>;

constexpr int64_t kSteps = 25;

/// All of the state: max|a - b| / max|b| of every tensor.
void expect_close_to(ShardedOptimizer& optimizer, const MomentumState& reference,
    const std::vector<std::string>& state, double tolerance) {
  for (const std::string& which : state) {
    for (const auto& [name, tensor] : optimizer.full_state(which)) {
      if (tensor.numel() == 0) continue;
      const at::Tensor expected = reference.get(which, name);
      const double difference = (tensor.to(at::kDouble) - expected).abs().max().item<double>();
      EXPECT_LE(difference, tolerance * expected.abs().max().item<double>())
          << which << " of " << name << " in " << c10::toString(tensor.scalar_type());
    }
  }
}

double tolerance_of(at::ScalarType dtype) { return dtype == at::kDouble ? 1e-13 : 4e-6; }

/// Steps with each rank's own gradients, and the reference with their mean. `make` makes the optimizer over the
/// parameters.
template <typename Reference>
void expect_follows(const typename Reference::Options& options, const OptimizerMaker& make,
    const std::vector<std::string>& state = {"z", "x", "m", "v", "y"}) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    const NamedParameters parameters = make_parameters(odd_shapes(), dtype);
    Reference reference(parameters, options);
    const auto optimizer = make(parameters, buckets_of(200));
    for (int64_t step = 0; step < kSteps; ++step) {
      const auto of_rank = [&](int rank) {
        Gradients gradients = random_gradients(parameters, step, rank);
        if (step % 3 == 1) gradients.erase("p5");
        return gradients;
      };
      backward(parameters, of_rank(world()->rank()));
      optimizer->step();
      optimizer->zero_grad();
      reference.step(mean_gradients(world()->size(), of_rank));
    }
    expect_close_to(*optimizer, reference.state, state, tolerance_of(dtype));
  }
}

TEST(GPA, FollowsTheFormulas) {
  for (const double weight_decay : {0.0, 0.1}) {
    GPAReference::Options o;
    o.lr = 0.01, o.beta1 = 0.8, o.beta2 = 0.95, o.weight_decay = weight_decay, o.warmup_steps = 5;
    o.mu_x = 0.97;
    expect_follows<GPAReference>(o, [&](const NamedParameters& parameters, const ShardingOptions& sharding) {
      return std::make_unique<GPAAdamW>(std::vector<ParameterGroup>{ParameterGroup(parameters)}, world(),
          GPAAdamWOptions(o.lr)
              .betas({o.beta1, o.beta2})
              .weight_decay(o.weight_decay)
              .warmup_steps(o.warmup_steps)
              .eval_interp_coeff(o.mu_x),
          sharding);
    });
  }
}

TEST(GPA, WithoutAveragingIsAdamW) {
  const NamedParameters ours = make_parameters(odd_shapes(), at::kDouble);
  const NamedParameters plain = make_parameters(odd_shapes(), at::kDouble);
  GPAAdamW gpa({ParameterGroup(ours)}, world(),
      GPAAdamWOptions(0.01).weight_decay(0.1).train_interp_coeff(0).eval_interp_coeff(0));
  AdamW adamw({ParameterGroup(plain)}, world(), AdamWOptions(0.01).weight_decay(0.1));
  for (int64_t step = 0; step < 20; ++step) {
    const Gradients gradients = random_gradients(ours, step, world()->rank());
    backward(ours, gradients);
    gpa.step();
    gpa.zero_grad();
    backward(plain, gradients);
    adamw.step();
    adamw.zero_grad();
  }
  for (size_t p = 0; p < ours.size(); ++p) {
    EXPECT_TRUE(at::allclose(ours[p].second, plain[p].second, 1e-12, 1e-14)) << ours[p].first;
  }
}

OptimizerMaker schedule_free(const InnerMomentumReference::Options& o) {
  return [o](const NamedParameters& parameters, const ShardingOptions& sharding) {
    return std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)},
        world(),
        AdamWScheduleFreeOptions(o.lr)
            .betas({o.beta1, o.beta2})
            .weight_decay(o.weight_decay)
            .warmup_steps(o.warmup_steps)
            .refinement(o.refinement)
            .inner_momentum(o.inner_momentum),
        sharding);
  };
}

TEST(InnerMomentum, FollowsTheFormulas) {
  for (const double weight_decay : {0.0, 0.1}) {
    InnerMomentumReference::Options o;
    o.lr = 0.01, o.beta2 = 0.95, o.weight_decay = weight_decay, o.warmup_steps = 5, o.inner_momentum = 0.8;
    expect_follows<InnerMomentumReference>(o, schedule_free(o));
  }
}

TEST(Refinement, FollowsTheFormulas) {
  for (const double refinement : {2.0, 200.0}) {  // the second keeps c at 1 for 20 steps
    InnerMomentumReference::Options o;
    o.lr = 0.01, o.beta2 = 0.95, o.weight_decay = 0.1, o.warmup_steps = 5, o.refinement = refinement;
    expect_follows<InnerMomentumReference>(o, schedule_free(o), {"z", "x", "v", "y"});
    o.inner_momentum = 0.8;
    expect_follows<InnerMomentumReference>(o, schedule_free(o));
  }
}

State trained(const NamedParameters& parameters, ShardedOptimizer& optimizer) {
  for (int64_t step = 0; step < 10; ++step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer.step();
    optimizer.zero_grad();
  }
  return {{"z", optimizer.full_state("z")}, {"x", optimizer.full_state("x")},
      {"v", optimizer.full_state("v")}, {"y", optimizer.full_state("y")}};
}

// 1 - 0.75 and its inverse are exact.
TEST(Refinement, OfTheInverseOfOneMinusBeta1ChangesNoBit) {
  std::vector<State> states;
  for (const double refinement : {0.0, 4.0}) {
    InnerMomentumReference::Options o;
    o.beta1 = 0.75, o.refinement = refinement;
    const NamedParameters parameters = make_parameters(odd_shapes());
    const auto optimizer = schedule_free(o)(parameters, {});
    states.push_back(trained(parameters, *optimizer));
  }
  expect_same_bits(states[1], states[0]);
}

// Its momentum is 0, so that the gradient itself is what z moves along.
TEST(InnerMomentum, OfOneGroupLeavesAnotherAsItIsWithout) {
  std::vector<State> states;
  for (const bool beside_another : {false, true}) {
    const NamedParameters all = make_parameters({{30}, {31}});
    const AdamWScheduleFreeOptions plain(0.01);
    std::vector<ParameterGroup> groups = {ParameterGroup(NamedParameters{all[0]}, plain)};
    if (beside_another)
      groups.emplace_back(NamedParameters{all[1]}, AdamWScheduleFreeOptions(0.01).inner_momentum(0.9));
    AdamWScheduleFree optimizer(groups, world(), plain);
    const NamedParameters used = beside_another ? all : NamedParameters{all[0]};
    State state = trained(used, optimizer);
    if (beside_another) {
      EXPECT_GT(optimizer.full_state("m").at("p1").abs().max().item<double>(), 0);
      for (auto& [which, tensors] : state) tensors.erase("p1");
    }
    states.push_back(std::move(state));
  }
  expect_same_bits(states[1], states[0]);
}

TEST(InnerMomentum, CannotBeGivenLater) {
  const NamedParameters parameters = make_parameters({{30}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  EXPECT_THROW(optimizer.full_state("m"), c10::Error);
  auto& options = static_cast<AdamWScheduleFreeOptions&>(optimizer.param_groups()[0].options());
  options.inner_momentum(0.9);
  backward(parameters, random_gradients(parameters, 0, world()->rank()));
  expect_error([&] { optimizer.step(); }, {"inner_momentum is 0.9", "when the optimizer was constructed"});
}

}  // namespace
}  // namespace zerosched::testing
