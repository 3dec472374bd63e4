// Gradient norms and clipping, and what a step sends and takes.
#include "engine/step_report.h"
#include "engine/toy.h"
#include "support/world.h"

#include "layout/layout.h"

#include <torch/nn/utils/clip_grad.h>

#include <cmath>

namespace zerosched::testing {
namespace {

double norm_of(const Gradients& gradients) {
  double sum = 0;
  for (const auto& named : gradients) sum += named.second.to(at::kDouble).square().sum().item<double>();
  return std::sqrt(sum);
}

TEST(GradNorm, IsThatOfTheAveragedGradient) {
  for (const bool clip : {false, true}) {
    for (const bool overlap : {false, true}) {
      const NamedParameters parameters = make_parameters(odd_shapes());
      ShardingOptions sharding = buckets_of(300).overlap_backward(overlap);
      if (clip) sharding.max_grad_norm(0.7);
      AdamWScheduleFree optimizer(
          {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(), sharding);
      expect_error([&] { optimizer.grad_norm(); }, {"grad_norm()", "step()"});
      for (int64_t step = 0; step < 3; ++step) {
        optimizer.zero_grad();
        const auto of_rank = [&](int rank) {
          Gradients gradients = random_gradients(parameters, step, rank);
          gradients.erase("p3");
          return gradients;
        };
        backward(parameters, of_rank(world()->rank()));
        optimizer.step();
        const double expected = norm_of(mean_gradients(world()->size(), of_rank));
        EXPECT_NEAR(optimizer.grad_norm(), expected, 1e-6 * expected);
        EXPECT_EQ(optimizer.grad_norm(), optimizer.grad_norm());
      }
    }
  }
}

TEST(GradNorm, IsGoneOnceTheNextBackwardHasBegun) {
  const NamedParameters parameters = make_parameters({{10}, {20}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  backward(parameters, random_gradients(parameters, 0, 0));
  optimizer.step();
  backward(parameters, random_gradients(parameters, 1, 0));
  expect_error([&] { optimizer.grad_norm(); }, {"the next backward has begun"});
  optimizer.step();
  EXPECT_GT(optimizer.grad_norm(), 0);
}

// In a world of one, and if the trainer averages, a step without hooks is made with .grad itself.
TEST(GradNorm, IsNotOfGradientsThatHaveChangedSince) {
  for (const GradientInput input : {GradientInput::local, GradientInput::already_averaged}) {
    const NamedParameters parameters = make_parameters({{10}, {20}});
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(),
        ShardingOptions().overlap_backward(false).gradients(input));
    const Gradients gradients = random_gradients(parameters, 0, 0);
    const double expected = norm_of(gradients);
    backward(parameters, gradients);
    optimizer.step();
    for (const auto& [name, parameter] : parameters) parameter.mutable_grad().reset();
    EXPECT_NEAR(optimizer.grad_norm(), expected, 1e-6 * expected);

    backward(parameters, gradients);
    optimizer.step();
    backward(parameters, gradients);  // adds to .grad in place
    if (input == GradientInput::already_averaged || world()->size() == 1) {
      expect_error([&] { optimizer.grad_norm(); }, {".grad has been changed"});
    } else {
      EXPECT_NEAR(optimizer.grad_norm(), expected, 1e-6 * expected);
    }
  }
}

TEST(GradNorm, ClipsAsLibTorchDoes) {
  for (const double max_norm : {0.5, 1e6}) {
    for (const bool averaged : {false, true}) {
      const NamedParameters parameters = make_parameters(odd_shapes());
      Reference reference(parameters);
      ShardingOptions sharding = buckets_of(300).max_grad_norm(max_norm);
      if (averaged) sharding.gradients(GradientInput::already_averaged);
      AdamWScheduleFree optimizer(
          {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(), sharding);
      for (int64_t step = 0; step < 5; ++step) {
        optimizer.zero_grad();
        const auto of_rank = [&](int rank) {
          return random_gradients(parameters, step, averaged ? 0 : rank);
        };
        backward(parameters, of_rank(world()->rank()));
        optimizer.step();

        std::vector<at::Tensor> plain;
        Gradients clipped;
        for (const auto& [name, gradient] : mean_gradients(world()->size(), of_rank)) {
          plain.push_back(at::zeros_like(gradient).requires_grad_());
          plain.back().mutable_grad() = gradient;
          clipped[name] = gradient;  // clipped in place
        }
        const double norm = torch::nn::utils::clip_grad_norm_(plain, max_norm);
        EXPECT_NEAR(optimizer.grad_norm(), norm, 1e-6 * norm);
        reference.step(clipped);
      }
      expect_close(full_state(optimizer), reference, 1e-5);
    }
  }
}

TEST(GradNorm, IsOverAllGroupsAndDtypes) {
  NamedParameters all = make_parameters({{30}, {31}, {32}});
  all[1].second = all[1].second.detach().to(at::kDouble).requires_grad_();
  all[2].second = all[2].second.detach().to(at::kBFloat16).requires_grad_();
  constexpr double kMaxNorm = 0.5;
  for (const bool overlap : {true, false}) {
    Reference reference(all);
    AdamWScheduleFree optimizer(
        {ParameterGroup(NamedParameters{all[0]}), ParameterGroup(NamedParameters{all[1], all[2]})}, world(),
        {}, ShardingOptions().max_grad_norm(kMaxNorm).overlap_backward(overlap));
    // The same on every rank, so that bfloat16 gradients are not rounded on their way at 1, 2 and 4 ranks.
    Gradients gradients = random_gradients(all, 0, 0);
    optimizer.zero_grad();
    backward(all, gradients);
    optimizer.step();
    const double norm = norm_of(gradients);
    EXPECT_NEAR(optimizer.grad_norm(), norm, 2e-3 * norm);
    for (auto& named : gradients) named.second = named.second.to(at::kDouble) * (kMaxNorm / (norm + 1e-6));
    reference.step(gradients);
    State state = full_state(optimizer);
    state.erase("y");
    const int size = world()->size();
    expect_close(state, reference, (size & (size - 1)) == 0 ? 4e-6 : 1e-2);
    optimizer.zero_grad();
  }
}

// The norm is known without asking anyone, so that rank 0 may print it alone.
TEST(GradNorm, OfNotANumberReachesEveryParameter) {
  const NamedParameters parameters = make_parameters({{10}, {20}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(),
      ShardingOptions().max_grad_norm(1.0).non_finite(NonFinite::ignore));
  Gradients gradients = random_gradients(parameters, 0, 0);
  if (world()->rank() == 0) gradients.at("p0")[3] = std::nan("");
  backward(parameters, gradients);
  optimizer.step();
  if (world()->rank() == 0) {
    EXPECT_TRUE(std::isnan(optimizer.grad_norm()));
  }
  for (const auto& named : parameters) EXPECT_TRUE(named.second.isnan().all().item<bool>());
  backward(parameters, gradients);
  optimizer.step();
}

// With NonFinite::ignore as a plain optimizer: an inf or NaN without GradScaler and clipping harms its own element, on
// every rank alike.
TEST(GradNorm, NotANumberWithoutClippingStaysInItsElement) {
  for (const bool overlap : {true, false}) {
    const NamedParameters parameters = make_parameters({{10}, {20}});
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {},
        ShardingOptions().overlap_backward(overlap).non_finite(NonFinite::ignore));
    for (int64_t step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      Gradients gradients = random_gradients(parameters, step, world()->rank());
      if (world()->rank() == 0 && step == 1) gradients.at("p0")[3] = std::nan("");
      backward(parameters, gradients);
      optimizer.step();
    }
    const auto y = optimizer.full_state("y");
    EXPECT_TRUE(y.at("p0")[3].isnan().item<bool>());
    EXPECT_EQ(y.at("p0").isnan().sum().item<int64_t>(), 1);
    EXPECT_EQ(y.at("p1").isnan().sum().item<int64_t>(), 0);
    expect_parameters_are(parameters, y);
    const auto evaluation = optimizer.eval_scope();
  }
}

class TrafficOfAStep : public ::testing::TestWithParam<bool> {};

TEST_P(TrafficOfAStep, IsOneReduceScatterAndOneAllGatherOfThePaddedModel) {
  const bool clip = GetParam();
  const int size = world()->size();
  const auto shapes = odd_shapes();
  const NamedParameters parameters = make_parameters(shapes);
  std::vector<detail::ParameterSpec> specs;
  for (const auto& [name, parameter] : parameters) {
    specs.push_back({name, parameter.sizes().vec(), parameter.strides().vec(), at::kFloat, 0});
  }
  const detail::Layout layout = detail::make_layout(specs, {400, 400}, size);
  int64_t gathered_bytes = 0;
  int64_t reduced_bytes = 0;
  for (const detail::Bucket& bucket : layout.buckets) {
    gathered_bytes += 4 * bucket.numel(size);
    reduced_bytes += 4 * size * bucket.gradient_slice_numel();
  }
  // Rank 0's options and the loss scale, and what else ranks tell each other.
  const auto values = static_cast<int64_t>(AdamWScheduleFreeOptions().values().size()) + 1;
  reduced_bytes += 4 * size * detail::ReportCodec(at::kFloat, values, size).numel();
  const auto buckets = static_cast<int64_t>(layout.buckets.size());
  ASSERT_GT(buckets, 2);

  ShardingOptions sharding = buckets_of(400);
  if (clip) sharding.max_grad_norm(1.0);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(), sharding);
  for (int64_t step = 0; step < 4; ++step) {
    const Traffic before = optimizer.communicator()->traffic();
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer.step();
    const Traffic after = optimizer.communicator()->traffic();
    // Alone, gradients are used where backward left them.
    EXPECT_EQ(after.reduce_scatter.calls - before.reduce_scatter.calls, size == 1 ? 0 : buckets);
    EXPECT_EQ(after.reduce_scatter.bytes - before.reduce_scatter.bytes, size == 1 ? 0 : reduced_bytes);
    EXPECT_EQ(after.all_gather.calls - before.all_gather.calls, buckets);
    EXPECT_EQ(after.all_gather.bytes - before.all_gather.bytes, gathered_bytes);
    EXPECT_EQ(after.all_reduce.calls - before.all_reduce.calls, clip ? 1 : 0);
    EXPECT_EQ(after.all_reduce.bytes - before.all_reduce.bytes, clip ? 8 : 0);
    EXPECT_EQ(after.barrier.calls - before.barrier.calls, 0);
    const bool order_is_sent = step == 0 && size > 1;
    EXPECT_EQ(after.broadcast.calls - before.broadcast.calls, order_is_sent ? 1 : 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Clipping, TrafficOfAStep, ::testing::Bool());

TEST(Timings, PhasesArePartsOfTheStep) {
  for (const bool overlap : {true, false}) {
    for (const bool clip : {true, false}) {
      const NamedParameters parameters = make_parameters({{1000}, {2000}, {3000}});
      ShardingOptions sharding = buckets_of(1).overlap_backward(overlap);
      if (clip) sharding.max_grad_norm(1.0);
      AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, sharding);
      EXPECT_EQ(optimizer.timings().step, 0) << "no step yet";
      for (int64_t step = 0; step < 2; ++step) {
        optimizer.zero_grad();
        backward(parameters, random_gradients(parameters, step, world()->rank()));
        optimizer.step();
        const Timings t = optimizer.timings();
        EXPECT_EQ(t.backward > 0, overlap);
        EXPECT_EQ(t.norm > 0, clip);
        EXPECT_GT(t.update, 0);
        const double parts =
            t.collect_gradients + t.wait_reduce_scatter + t.norm + t.update + t.wait_all_gather;
        EXPECT_LE(parts, t.step);
        EXPECT_LE(t.wait_between_steps, t.between_steps);
      }
    }
  }
}

TEST(Traffic, TwoOptimizersOnOneCommunicatorDoNotMix) {
  const int rank = world()->rank();
  const int size = world()->size();
  const NamedParameters a = make_parameters({{40}, {41}});
  const NamedParameters b = make_parameters({{50}, {51}, {52}});
  Reference expected_a(a), expected_b(b);
  AdamWScheduleFree first({ParameterGroup(a)}, world(), AdamWScheduleFreeOptions(), buckets_of(1));
  AdamWScheduleFree second({ParameterGroup(b)}, world(), AdamWScheduleFreeOptions(), buckets_of(1));
  EXPECT_NE(first.communicator(), second.communicator());
  for (int64_t step = 0; step < 4; ++step) {
    // Ranks launch the buckets of the two in different orders.
    const Gradients of_a = random_gradients(a, step, rank);
    const Gradients of_b = random_gradients(b, step, rank);
    if (rank % 2 == 0) backward(a, of_a);
    backward(b, of_b);
    if (rank % 2 == 1) backward(a, of_a);
    first.step();
    second.step();
    expected_a.step(mean_gradients(size, [&](int r) { return random_gradients(a, step, r); }));
    expected_b.step(mean_gradients(size, [&](int r) { return random_gradients(b, step, r); }));
  }
  expect_close(full_state(first), expected_a);
  expect_close(full_state(second), expected_b);
}

}  // namespace
}  // namespace zerosched::testing
