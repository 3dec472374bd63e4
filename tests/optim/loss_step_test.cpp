// AdamWScheduleFreePlus, whose step size comes from the loss, against its formulas; and what the loss has to do with
// weights, clipping, loss scales, and steps that are left out.
#include "engine/toy.h"
#include "optim/momentum_reference.h"
#include "support/world.h"

#include <zerosched/zerosched.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::testing {
namespace {

using Options = PlusReference::Options;

AdamWScheduleFreePlusOptions options_of(const Options& o) {
  return AdamWScheduleFreePlusOptions(o.lr)
      .betas({o.beta1, o.beta2})
      .sf_beta1(o.sf_beta1)
      .sf_beta1_max(o.sf_beta1_max)
      .sf_beta1_anneal_steps(o.anneal_steps)
      .eps(o.eps)
      .weight_decay(o.weight_decay)
      .r(o.r)
      .weight_lr_power(o.weight_lr_power)
      .polyak_beta(o.polyak_beta)
      .c_warmup(o.c_warmup);
}

/// Falls, differs from rank to rank, and now and then is so small that <g, z - x> outweighs it.
double loss_of(int64_t step, int rank) {
  return step % 7 == 3 ? 1e-3 : 3 * std::exp(-0.05 * static_cast<double>(step)) + 0.1 * rank;
}

struct Setting {
  bool weighed = false;
  std::optional<double> max_grad_norm;
  at::ScalarType dtype = at::kDouble;
};

double weight_of(const Setting& setting, int rank) { return setting.weighed ? 1.0 + rank % 2 : 1.0; }

Gradients mean_of(const NamedParameters& parameters, const Setting& setting, int64_t step) {
  double all = 0;
  for (int rank = 0; rank < world()->size(); ++rank) all += weight_of(setting, rank);
  Gradients mean;
  for (const auto& [name, parameter] : parameters) mean[name] = at::zeros_like(parameter, at::kDouble);
  for (int rank = 0; rank < world()->size(); ++rank) {
    for (const auto& [name, gradient] : random_gradients(parameters, step, rank))
      mean[name] += gradient.to(at::kDouble) * (weight_of(setting, rank) / all);
  }
  return mean;
}

void clip(Gradients& gradients, double max_norm) {
  double squares = 0;
  for (const auto& named : gradients) squares += named.second.square().sum().item<double>();
  const double factor = std::min(1.0, max_norm / (std::sqrt(squares) + 1e-6));
  for (auto& named : gradients) named.second = named.second * factor;
}

void expect_follows(const Options& options, const Setting& setting) {
  const NamedParameters parameters = make_parameters(odd_shapes(), setting.dtype);
  PlusReference reference(parameters, options);
  ShardingOptions sharding = buckets_of(200);
  sharding.max_grad_norm(setting.max_grad_norm);
  AdamWScheduleFreePlus optimizer({ParameterGroup(parameters)}, world(), options_of(options), sharding);
  int64_t standing = 0;
  for (int64_t step = 0; step < 24; ++step) {
    const int rank = world()->rank();
    if (setting.weighed) optimizer.step_weight(weight_of(setting, rank));
    backward(parameters, random_gradients(parameters, step, rank));
    optimizer.step(at::full({1}, loss_of(step, rank), at::kDouble));
    optimizer.zero_grad();
    double loss = 0, all = 0;
    for (int r = 0; r < world()->size(); ++r) {
      loss += weight_of(setting, r) * loss_of(step, r);
      all += weight_of(setting, r);
    }
    Gradients mean = mean_of(parameters, setting, step);
    if (setting.max_grad_norm) clip(mean, *setting.max_grad_norm);
    reference.step(mean, loss / all);
    standing += reference.last_step == 0 ? 1 : 0;
  }
  EXPECT_LT(standing, 12);
  const double tolerance = setting.dtype == at::kDouble ? 1e-12 : 2e-5;
  for (const std::string which : {"z", "x", "m", "v", "y"}) {
    for (const auto& [name, tensor] : optimizer.full_state(which)) {
      if (tensor.numel() == 0) continue;
      const at::Tensor expected = reference.state.get(which, name);
      const double difference = (tensor.to(at::kDouble) - expected).abs().max().item<double>();
      EXPECT_LE(difference, tolerance * expected.abs().max().item<double>()) << which << " of " << name;
    }
  }
}

TEST(LossStep, FollowsTheFormulas) {
  Options plain, all;
  all.lr = 0.7, all.weight_decay = 5, all.r = 1, all.weight_lr_power = 1.5, all.polyak_beta = 0.8;
  all.anneal_steps = 12, all.c_warmup = 5;
  for (const Options& options : {plain, all}) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
      Setting setting;
      setting.dtype = dtype;
      expect_follows(options, setting);
    }
  }
}

TEST(LossStep, LossesAreWeighedAsGradientsAre) {
  Setting setting;
  setting.weighed = true;
  expect_follows(Options(), setting);
}

TEST(LossStep, ClippedGradientsAreWhatTheStepSizeIsMadeOf) {
  Setting setting;
  setting.max_grad_norm = 0.5;
  Options options;
  options.polyak_beta = 0.8;  // else the factor would cancel but for <g, z - x>
  expect_follows(options, setting);
}

std::unique_ptr<AdamWScheduleFreePlus> make(
    const NamedParameters& parameters, const ShardingOptions& sharding = {}) {
  return std::make_unique<AdamWScheduleFreePlus>(std::vector<ParameterGroup>{ParameterGroup(parameters)},
      world(), AdamWScheduleFreePlusOptions(), sharding);
}

State state_of(ShardedOptimizer& optimizer) {
  State state;
  for (const char* which : {"z", "x", "m", "v", "y"}) state[which] = optimizer.full_state(which);
  return state;
}

TEST(LossStep, AClosureAndALossScaleGiveTheSameBits) {
  std::vector<State> states;
  for (const int way : {0, 1, 2}) {
    const NamedParameters parameters = make_parameters(odd_shapes());
    const auto optimizer = make(parameters);
    GradScaler scaler(GradScalerOptions().init_scale(256));
    for (int64_t step = 0; step < 10; ++step) {
      const at::Tensor loss = at::full({}, loss_of(step, world()->rank()));
      Gradients gradients = random_gradients(parameters, step, world()->rank());
      if (way == 2) {
        for (auto& named : gradients) named.second = named.second * 256;
      }
      if (way != 1) backward(parameters, gradients);
      if (way == 0) optimizer->step(loss);
      if (way == 1) {
        optimizer->step([&] {
          backward(parameters, gradients);
          return loss;
        });
      }
      if (way == 2) {
        optimizer->set_loss(loss);
        EXPECT_TRUE(scaler.step(*optimizer));
      }
      optimizer->zero_grad();
    }
    states.push_back(state_of(*optimizer));
  }
  expect_same_bits(states[1], states[0]);
  expect_same_bits(states[2], states[0]);
}

TEST(LossStep, ALossHasOneElement) {
  const NamedParameters parameters = make_parameters({{30}});
  // One rank may have failed before another has left the constructor.
  expect_error([&] { make(parameters)->step(at::zeros({2})); }, {"one element", "[2]"});
}

TEST(LossStep, ALossIsNeeded) {
  const NamedParameters parameters = make_parameters({{30}});
  const auto optimizer = make(parameters);
  backward(parameters, random_gradients(parameters, 0, world()->rank()));
  expect_error([&] { optimizer->step(); }, {"AdamWScheduleFreePlus", "call step(loss)"});
}

TEST(LossStep, ARankWithoutDataNeedsNone) {
  const NamedParameters parameters = make_parameters({{30}});
  const auto optimizer = make(parameters);
  const int last = world()->size() - 1;
  if (last == 0) return;
  for (int64_t step = 0; step < 3; ++step) {
    optimizer->step_weight(world()->rank() == last ? 0 : 1);
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    if (world()->rank() == last) {
      optimizer->step();
    } else {
      optimizer->step(at::full({}, 1.0));
    }
    optimizer->zero_grad();
  }
  expect_parameters_are(parameters, optimizer->full_state("y"));
}

TEST(LossStep, RanksThatHaveJoinedTakePart) {
  const NamedParameters parameters = make_parameters({{30}});
  const auto optimizer = make(parameters);
  const int64_t steps = 3 + world()->rank();
  for (int64_t step = 0; step < steps; ++step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer->step(at::full({}, 1.0));
    optimizer->zero_grad();
  }
  optimizer->join();
  expect_parameters_are(parameters, optimizer->full_state("y"));
}

TEST(LossStep, ALossThatIsNotFiniteIsAsAGradientThatIsNot) {
  const NamedParameters parameters = make_parameters({{30}});
  const int last = world()->size() - 1;
  const double bad = std::numeric_limits<double>::infinity();
  for (const NonFinite policy : {NonFinite::skip, NonFinite::error}) {
    const auto optimizer = make(parameters, ShardingOptions().non_finite(policy));
    const auto step = [&](double loss) {
      backward(parameters, random_gradients(parameters, 0, world()->rank()));
      optimizer->step(at::full({}, loss, at::kDouble));
      optimizer->zero_grad();
    };
    step(1);
    const State before = state_of(*optimizer);
    const double loss = world()->rank() == last ? bad : 1.0;
    if (policy == NonFinite::skip) {
      step(loss);
      EXPECT_EQ(optimizer->skipped_steps(), 1);
    } else {
      expect_error([&] { step(loss); }, {"the loss of some rank", "inf"});
    }
    expect_same_bits(state_of(*optimizer), before);
    step(1);
  }
}

}  // namespace
}  // namespace zerosched::testing
