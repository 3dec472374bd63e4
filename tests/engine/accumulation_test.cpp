// no_sync(): several backward passes to one step.
#include "engine/toy.h"
#include "support/world.h"

namespace zerosched::testing {
namespace {

TEST(Accumulation, PassesUnderNoSyncAreOneLargeBatch) {
  const int size = world()->size();
  const int rank = world()->rank();
  constexpr int kPasses = 3;
  for (const int buffers : {1, 3}) {
    const NamedParameters parameters = make_parameters(odd_shapes());
    Reference reference(parameters);
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(), buckets_of(100).bucket_buffers(buffers));
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
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(),
                                AdamWScheduleFreeOptions().betas({0.9, 0.0}), sharding);
    const auto pass = [&](double value) {
      Gradients gradients;
      for (const auto& [name, parameter] : parameters) gradients[name] = at::full_like(parameter, value).detach();
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
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(), ShardingOptions().reduce_dtype(at::kFloat));
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
