// Several backward passes to one step, under no_sync() and in compatible mode.
#include "engine/toy.h"
#include "support/world.h"

#include <cmath>
#include <optional>

namespace zerosched::testing {
namespace {

TEST(Accumulation, PassesUnderNoSyncAreOneLargeBatch) {
  const int size = world()->size();
  const int rank = world()->rank();
  constexpr int kPasses = 3;
  for (const int buffers : {1, 3}) {
    const NamedParameters parameters = make_parameters(odd_shapes());
    Reference reference(parameters);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(),
        buckets_of(100).bucket_buffers(buffers));
    for (int step = 0; step < 3; ++step) {
      const auto of_pass = [&](int pass, int r) {
        Gradients gradients = random_gradients(parameters, step * 10 + pass, r);
        if (pass != 1) gradients.erase("p0");            // used by one pass, not the last
        if (pass != kPasses - 1) gradients.erase("p5");  // used by the last alone
        gradients.erase("p9");                           // not used
        return gradients;
      };
      {
        const auto hold = optimizer.no_sync();
        for (int pass = 0; pass < kPasses - 1; ++pass) backward(parameters, of_pass(pass, rank));
      }
      backward(parameters, of_pass(kPasses - 1, rank));
      optimizer.step();
      reference.step(mean_gradients(size, [&](int r) {
        Gradients sum;
        for (int pass = 0; pass < kPasses; ++pass) {
          for (const auto& [name, gradient] : of_pass(pass, r)) {
            sum[name] = sum[name].defined() ? sum[name] + gradient : gradient;
          }
        }
        return sum;
      }));
    }
    expect_close(full_state(optimizer), reference);
  }
}

// The rows of one batch, dealt over ranks and passes, against a world of one that takes them all at once.
TEST(Accumulation, MicroBatchesOfAllRanksAreOneLargeBatch) {
  constexpr int64_t kPasses = 3, kRows = 4;
  const int64_t parts = world()->size() * kPasses;
  const auto parameters_of_net = [] { return make_parameters({{5, 8}, {8}, {8, 3}, {3}}, at::kDouble); };
  const auto loss_of = [&](const NamedParameters& p, int64_t step, int64_t first_part, int64_t count) {
    const at::Tensor all = random_like(at::empty({parts * kRows, 5}, at::kDouble), step, 0, 9);
    const at::Tensor input = all.narrow(0, first_part * kRows, count * kRows);
    const at::Tensor hidden = at::tanh(at::addmm(p[1].second, input, p[0].second));
    return (at::addmm(p[3].second, hidden, p[2].second) - input.narrow(1, 0, 3)).square().mean();
  };
  for (const std::optional<double> max_norm : {std::optional<double>(), std::optional<double>(0.05)}) {
    const auto sharding = buckets_of(200).max_grad_norm(max_norm);
    const NamedParameters whole = parameters_of_net();
    AdamWScheduleFree alone({ParameterGroup(whole)}, self_communicator(), {}, sharding);
    for (int64_t step = 0; step < 4; ++step) {
      alone.zero_grad();
      loss_of(whole, step, 0, parts).backward();
      alone.step();
      EXPECT_GT(alone.grad_norm(), 0.05) << "clipping has nothing to do";
    }
    const State expected = full_state(alone);

    enum class Way { no_sync, compatible, no_sync_in_compatible };
    for (const Way way : {Way::no_sync, Way::compatible, Way::no_sync_in_compatible}) {
      const NamedParameters parameters = parameters_of_net();
      AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {},
          ShardingOptions(sharding).overlap_backward(way == Way::no_sync));
      for (int64_t step = 0; step < 4; ++step) {
        optimizer.zero_grad();
        for (int64_t pass = 0; pass < kPasses; ++pass) {
          std::optional<NoSync> hold;
          if (way != Way::compatible && pass < kPasses - 1) hold.emplace(optimizer.no_sync());
          (loss_of(parameters, step, world()->rank() * kPasses + pass, 1) / kPasses).backward();
        }
        optimizer.step();
      }
      for (const auto& [which, tensors] : full_state(optimizer)) {
        for (const auto& [name, tensor] : tensors) {
          const at::Tensor& reference = expected.at(which).at(name);
          const double error = (tensor - reference).abs().max().item<double>();
          EXPECT_LE(error, 1e-10 * reference.abs().max().item<double>()) << which << " of " << name;
        }
      }
    }
  }
}

TEST(Accumulation, StepUnderNoSync) {
  const NamedParameters parameters = make_parameters({{10}, {20}});
  Reference reference(parameters);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  for (int step = 0; step < 2; ++step) {
    const auto outer = optimizer.no_sync();
    const auto inner = optimizer.no_sync();
    backward(parameters, random_gradients(parameters, step, 0));
    optimizer.step();
    reference.step(random_gradients(parameters, step, 0));
  }
  expect_close(full_state(optimizer), reference);
}

// 1 + 256 * 2^-9 = 1.5, but in bfloat16 1 + 2^-9 is 1. With beta2 = 0, v is the squared gradient.
TEST(Accumulation, BFloat16AccumulatesInFloat32) {
  for (const bool in_float : {true, false}) {
    const NamedParameters parameters = make_parameters({{70}, {3}}, at::kBFloat16);
    ShardingOptions sharding;
    if (in_float) sharding.reduce_dtype(at::kFloat);
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions().betas({0.9, 0.0}), sharding);
    const auto pass = [&](double value) {
      Gradients gradients;
      for (const auto& [name, parameter] : parameters)
        gradients[name] = at::full_like(parameter, value).detach();
      backward(parameters, gradients);
    };
    {
      const auto hold = optimizer.no_sync();
      pass(1.0);
      for (int i = 0; i < 255; ++i) pass(1.0 / 512);
    }
    for (const auto& named : parameters) EXPECT_FALSE(named.second.grad().defined());
    pass(1.0 / 512);
    optimizer.step();
    for (const auto& [name, v] : optimizer.full_state("v")) {
      EXPECT_TRUE(v.eq(2.25).all().item<bool>()) << name << ' ' << v;
    }
  }
}

/// v after one step with beta2 = 0, the square of the averaged gradient, of bfloat16 parameters.
double squared_gradient(const ShardingOptions& sharding, const std::vector<double>& passes) {
  const NamedParameters parameters = make_parameters({{70}, {3}}, at::kBFloat16);
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions().betas({0.9, 0.0}), sharding);
  for (size_t pass = 0; pass < passes.size(); ++pass) {
    std::optional<NoSync> hold;
    if (pass + 1 < passes.size()) hold.emplace(optimizer.no_sync());
    Gradients gradients;
    for (const auto& [name, parameter] : parameters) {
      gradients[name] = at::full_like(parameter, passes[pass]).detach();
    }
    backward(parameters, gradients);
  }
  optimizer.step();
  const at::Tensor v = optimizer.full_state("v").at("p0");
  EXPECT_TRUE(v.eq(v[0]).all().item<bool>());
  return v[0].item<double>();
}

// 1 + 101 * 2^-9 has 9 bits after the point, and bfloat16 has 7.
TEST(Accumulation, Float32ReductionKeepsWhatBFloat16Loses) {
  std::vector<double> passes(102, 1.0 / 512);
  passes[0] = 1;
  const double exact = std::pow(1 + 101.0 / 512, 2);
  EXPECT_NEAR(squared_gradient(ShardingOptions().reduce_dtype(at::kFloat), passes), exact, 1e-6 * exact);
  // Summed in float32 by no_sync(), but rounded on its way; the sum of three ranks is rounded once more.
  const double tolerance = world()->size() == 3 ? 1e-2 : 1e-6;
  EXPECT_NEAR(squared_gradient(ShardingOptions(), passes), std::pow(1 + 25.0 / 128, 2), tolerance);
  // LibTorch's own accumulation, in .grad: the small ones are all lost.
  EXPECT_NEAR(squared_gradient(ShardingOptions().overlap_backward(false), passes), 1, 1e-6);
}

// The same over ranks: rank 0 has 1, the others 2^-9.
TEST(Accumulation, Float32ReductionKeepsSmallGradientsOfOtherRanks) {
  const int size = world()->size();
  if (size == 1) return;
  const double own = world()->rank() == 0 ? 1 : 1.0 / 512;
  const double exact = std::pow((1 + (size - 1) / 512.0) / size, 2);
  for (const bool overlap : {true, false}) {
    const auto sharding = ShardingOptions().overlap_backward(overlap);
    EXPECT_NEAR(
        squared_gradient(ShardingOptions(sharding).reduce_dtype(at::kFloat), {own}), exact, 1e-6 * exact);
    EXPECT_GT(std::abs(squared_gradient(sharding, {own}) - exact), 1e-3 * exact);
  }
}

// Alone nothing is sent, but the sum is rounded as if it were.
TEST(Accumulation, BFloat16SumsHaveTheSameBitsOnEveryPowerOfTwo) {
  const int size = world()->size();
  if ((size & (size - 1)) != 0) return;  // sums of three equal terms round
  const auto state_over = [](const std::shared_ptr<Communicator>& communicator) {
    const NamedParameters parameters = make_parameters({{70}, {3}}, at::kBFloat16);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, communicator);
    {
      const auto hold = optimizer.no_sync();
      backward(parameters, random_gradients(parameters, 0, 0));
      backward(parameters, random_gradients(parameters, 1, 0));
    }
    backward(parameters, random_gradients(parameters, 2, 0));
    optimizer.step();
    return full_state(optimizer);
  };
  expect_same_bits(state_over(world()), state_over(self_communicator()));
}

TEST(Accumulation, ZeroGradForgetsWhatWasAccumulated) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const NamedParameters parameters = make_parameters({{10}, {20}}, dtype);
    Reference reference(parameters);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(),
        ShardingOptions().reduce_dtype(at::kFloat));
    {
      const auto hold = optimizer.no_sync();
      backward(parameters, random_gradients(parameters, 99, 0));
    }
    optimizer.zero_grad();
    backward(parameters, random_gradients(parameters, 0, 0));
    optimizer.step();
    reference.step(random_gradients(parameters, 0, 0));
    State state = full_state(optimizer);
    state.erase("y");
    expect_close(state, reference);
  }
}

}  // namespace
}  // namespace zerosched::testing
