// The same numbers whatever the number of ranks, buckets and threads.
#include "engine/toy.h"
#include "support/world.h"

#include <ATen/Parallel.h>

namespace zerosched::testing {
namespace {

AdamWScheduleFreeOptions options() {
  return AdamWScheduleFreeOptions(0.01).weight_decay(0.1).warmup_steps(3).betas({0.9, 0.99});
}

using GradientsOfStep = std::function<Gradients(const NamedParameters&, int64_t step)>;

State train(const std::shared_ptr<Communicator>& communicator,
    const std::vector<std::vector<int64_t>>& shapes, const ShardingOptions& sharding,
    const GradientsOfStep& gradients, int steps = 5, at::ScalarType dtype = at::kFloat) {
  const NamedParameters parameters = make_parameters(shapes, dtype);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, communicator, options(), sharding);
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    backward(parameters, gradients(parameters, step));
    optimizer.step();
  }
  State state = full_state(optimizer);
  expect_parameters_are(parameters, state.at("y"));
  return state;
}

Gradients same_on_every_rank(const NamedParameters& parameters, int64_t step) {
  return random_gradients(parameters, step, 0);
}

// 1 byte: every parameter is a bucket of its own. 284: buckets of 71 elements.
const int64_t kBucketBytes[] = {1, 71 * 4, 1000, 25 << 20};

TEST(WorldSize, AveragedGradientsGiveTheSameBitsForEveryWorldAndBucketSize) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    const State alone = train(self_communicator(), odd_shapes(),
        ShardingOptions().gradients(GradientInput::already_averaged), same_on_every_rank, 5, dtype);
    for (const int64_t bytes : kBucketBytes) {
      const State sharded = train(world(), odd_shapes(),
          buckets_of(bytes).gradients(GradientInput::already_averaged), same_on_every_rank, 5, dtype);
      expect_same_bits(sharded, alone);
    }
  }
}

TEST(WorldSize, EqualLocalGradientsGiveTheSameBitsOnPowersOfTwo) {
  const int size = world()->size();
  if ((size & (size - 1)) != 0) return;  // sums of three equal terms round
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const State alone =
        train(self_communicator(), odd_shapes(), ShardingOptions(), same_on_every_rank, 5, dtype);
    for (const bool overlap : {true, false}) {
      for (const int64_t bytes : kBucketBytes) {
        const ShardingOptions sharding = buckets_of(bytes).overlap_backward(overlap);
        expect_same_bits(train(world(), odd_shapes(), sharding, same_on_every_rank, 5, dtype), alone);
      }
    }
  }
}

// With beta2 = 0, v is the square of the averaged gradient.
TEST(WorldSize, UnequalGradientsAreAveragedWithinRoundingOfAPlainSum) {
  const int size = world()->size();
  for (const int64_t bytes : kBucketBytes) {
    const NamedParameters parameters = make_parameters(odd_shapes());
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(),
        AdamWScheduleFreeOptions(0.01).betas({0.9, 0.0}), buckets_of(bytes));
    const auto of_rank = [&](int rank) { return random_gradients(parameters, 4, rank); };
    backward(parameters, of_rank(world()->rank()));
    optimizer.step();
    const Gradients mean = mean_gradients(size, of_rank);
    for (const auto& [name, v] : optimizer.full_state("v")) {
      at::Tensor magnitude = at::zeros_like(v, at::kDouble);
      for (int rank = 0; rank < size; ++rank)
        magnitude += of_rank(rank).at(name).to(at::kDouble).abs() / size;
      const at::Tensor error = (v.to(at::kDouble).sqrt() - mean.at(name).abs()).abs();
      EXPECT_TRUE((error <= magnitude * 4 * 1.2e-7).all().item<bool>()) << name;
    }
  }
}

TEST(WorldSize, ManyStepsOfUnequalGradientsFollowTheReference) {
  const int size = world()->size();
  for (const bool overlap : {true, false}) {
    const NamedParameters parameters = make_parameters(odd_shapes());
    Reference::Options expected_options;
    expected_options.lr = 0.01;
    expected_options.weight_decay = 0.1;
    expected_options.warmup_steps = 3;
    expected_options.beta2 = 0.99;
    Reference reference(parameters, expected_options);
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), options(), buckets_of(300).overlap_backward(overlap));
    for (int step = 0; step < 20; ++step) {
      optimizer.zero_grad();
      backward(parameters, random_gradients(parameters, step, world()->rank()));
      optimizer.step();
      reference.step(
          mean_gradients(size, [&](int rank) { return random_gradients(parameters, step, rank); }));
    }
    expect_close(full_state(optimizer), reference);
  }
}

TEST(WorldSize, TwoRunsGiveTheSameBits) {
  const auto own = [](const NamedParameters& parameters, int64_t step) {
    return random_gradients(parameters, step, world()->rank());
  };
  for (const bool clip : {false, true}) {
    ShardingOptions sharding = buckets_of(71 * 4);
    if (clip) sharding.max_grad_norm(0.5);
    expect_same_bits(
        train(world(), odd_shapes(), sharding, own), train(world(), odd_shapes(), sharding, own));
  }
}

TEST(WorldSize, OverlappingAndCompatibleModeGiveTheSameBits) {
  const auto own = [](const NamedParameters& parameters, int64_t step) {
    return random_gradients(parameters, step, world()->rank());
  };
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    expect_same_bits(train(world(), odd_shapes(), buckets_of(200), own, 5, dtype),
        train(world(), odd_shapes(), buckets_of(200).overlap_backward(false), own, 5, dtype));
  }
}

TEST(WorldSize, MoreRanksThanElements) {
  const std::vector<std::vector<int64_t>> shapes = {{1}, {}, {2}};
  const auto averaged = ShardingOptions().gradients(GradientInput::already_averaged);
  expect_same_bits(train(world(), shapes, averaged, same_on_every_rank),
      train(self_communicator(), shapes, averaged, same_on_every_rank));
}

TEST(WorldSize, ThreadCountsGiveTheSameBits) {
  const auto own = [](const NamedParameters& parameters, int64_t step) {
    return random_gradients(parameters, step, world()->rank());
  };
  const int threads_before = at::get_num_threads();
  const std::vector<std::vector<int64_t>> shapes = {{300001}, {1003}};
  std::vector<State> states;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    states.push_back(train(world(), shapes, ShardingOptions().max_grad_norm(0.5), own, 2));
  }
  at::set_num_threads(threads_before);
  expect_same_bits(states[1], states[0]);
  expect_same_bits(states[2], states[0]);
}

}  // namespace
}  // namespace zerosched::testing
