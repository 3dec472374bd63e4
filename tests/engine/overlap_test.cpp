// When buckets go onto the wire, and that every rank sends the same ones whatever its backward does.
#include "engine/recording_communicator.h"
#include "engine/toy.h"
#include "support/world.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace zerosched::testing {
namespace {

const std::vector<std::vector<int64_t>> kSixParameters = {{40}, {41}, {42}, {43}, {44}, {45}};

using GradientsOfRank = std::function<Gradients(const NamedParameters&, int64_t step, int rank)>;
using OrderOfRank = std::function<std::vector<size_t>(int64_t step, int rank)>;

std::vector<size_t> in_order(size_t count) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  return order;
}

// Trains, and compares with the reference: a deadlock would end in the communicator's timeout.
void expect_trains(const std::vector<std::vector<int64_t>>& shapes, const ShardingOptions& sharding,
    const GradientsOfRank& gradients, const OrderOfRank& order = {}, int steps = 6) {
  const int size = world()->size();
  const int rank = world()->rank();
  const NamedParameters parameters = make_parameters(shapes);
  Reference reference(parameters);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(), sharding);
  for (int step = 0; step < steps; ++step) {
    if (!sharding.overlap_backward()) optimizer.zero_grad();  // otherwise .grad is undefined by now
    backward(
        parameters, gradients(parameters, step, rank), order ? order(step, rank) : std::vector<size_t>());
    optimizer.step();
    reference.step(mean_gradients(size, [&](int r) { return gradients(parameters, step, r); }));
  }
  const State state = full_state(optimizer);
  expect_close(state, reference);
  expect_parameters_are(parameters, state.at("y"));
}

TEST(Overlap, CommunicationStartsBeforeBackwardEnds) {
  if (world()->size() == 1) return;  // a world of one has nothing to send
  const auto log = std::make_shared<Log>();
  const NamedParameters parameters = make_parameters(kSixParameters);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)},
      std::make_shared<RecordingCommunicator>(world(), log), AdamWScheduleFreeOptions(),
      buckets_of(2 * 256).bucket_buffers(3));
  parameters.front().second.register_hook([&](const at::Tensor&) { log->add("last gradient"); });
  for (int step = 0; step < 3; ++step) {
    log->take();
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    const std::vector<std::string> events = log->take();
    const auto position = [&](const std::string& event) {
      return std::find(events.begin(), events.end(), event) - events.begin();
    };
    ASSERT_LT(position("last gradient"), static_cast<int64_t>(events.size()));
    EXPECT_LT(position("reduce_scatter 0"), position("last gradient"));
    EXPECT_LT(position("reduce_scatter 1"), position("last gradient"));
    optimizer.step();
  }
}

TEST(Overlap, BucketsFollowTheOrderThatRankZeroSaw) {
  if (world()->size() == 1) return;
  const auto log = std::make_shared<Log>();
  const NamedParameters parameters = make_parameters(kSixParameters);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)},
      std::make_shared<RecordingCommunicator>(world(), log), AdamWScheduleFreeOptions(),
      buckets_of(1).bucket_buffers(6));
  // Hooks fire in reverse: parameter 5 is bucket 0. Rank 0 sees the buckets 2 4 0 5 1 3, others their own way.
  const std::vector<size_t> order =
      world()->rank() == 0 ? std::vector<size_t>{2, 4, 0, 5, 1, 3} : std::vector<size_t>{0, 1, 2, 3, 4, 5};
  const auto launches = [&](int step) {
    log->take();
    backward(parameters, random_gradients(parameters, step, world()->rank()), order);
    optimizer.step();
    std::vector<std::string> reduce_scatters;
    for (const std::string& event : log->take()) {
      if (event.rfind("reduce_scatter", 0) == 0) reduce_scatters.push_back(event.substr(15));
    }
    return reduce_scatters;
  };
  EXPECT_EQ(launches(0), (std::vector<std::string>{"0", "1", "2", "3", "4", "5"}));
  const std::vector<std::string> observed = {"2", "4", "0", "5", "1", "3"};
  EXPECT_EQ(launches(1), observed);
  EXPECT_EQ(launches(2), observed);
}

TEST(Overlap, RanksMaySeeParametersBecomeReadyInDifferentOrders) {
  const auto rotated = [](int64_t step, int rank) {
    std::vector<size_t> order = in_order(kSixParameters.size());
    std::rotate(order.begin(), order.begin() + (rank * 2 + step) % 6, order.end());
    return order;
  };
  for (const int buffers : {1, 2, 6}) {
    expect_trains(kSixParameters, buckets_of(1).bucket_buffers(buffers), random_gradients, rotated);
  }
}

TEST(Overlap, ParametersThatOnlyOneRankOrNoneUses) {
  const int size = world()->size();
  const auto gradients = [size](const NamedParameters& parameters, int64_t step, int rank) {
    Gradients used = random_gradients(parameters, step, rank);
    used.erase("p1");                        // nobody, ever
    if (rank != 0) used.erase("p2");         // rank 0 alone
    if (rank != size - 1) used.erase("p5");  // the last rank alone, and first to be ready
    if (step % 2 == 1) used.erase("p3");     // everybody, in every other step
    return used;
  };
  for (const int64_t bytes : {1, 400, 1 << 20}) {
    for (const bool overlap : {true, false}) {
      expect_trains(kSixParameters, buckets_of(bytes).bucket_buffers(2).overlap_backward(overlap), gradients);
    }
  }
}

TEST(Overlap, TheFirstBucketIsNeverComplete) {
  const auto gradients = [](const NamedParameters& parameters, int64_t step, int rank) {
    Gradients used = random_gradients(parameters, step, rank);
    used.erase("p5");
    used.erase("p4");
    return used;
  };
  for (const int buffers : {1, 3}) {
    expect_trains(kSixParameters, buckets_of(400).bucket_buffers(buffers), gradients);
  }
}

TEST(Overlap, NoGradientAtAll) {
  expect_trains(
      kSixParameters, buckets_of(400), [](const NamedParameters& parameters, int64_t step, int rank) {
        return step == 1 ? Gradients() : random_gradients(parameters, step, rank);
      });
  const auto own = [](const NamedParameters& parameters, int64_t step, int rank) {
    return rank == 0 ? random_gradients(parameters, step, rank) : Gradients();
  };
  expect_trains(kSixParameters, buckets_of(400), own);
}

TEST(Overlap, OneBufferAndManyTinyBuckets) {
  const std::vector<std::vector<int64_t>> shapes(60, std::vector<int64_t>{3});
  for (const int buffers : {1, 4}) {
    expect_trains(shapes, buckets_of(1).bucket_buffers(buffers), random_gradients, {}, 3);
  }
}

TEST(Overlap, OneHugeBucketAmongSmallOnes) {
  const std::vector<std::vector<int64_t>> shapes = {{5}, {7}, {20000}, {3}, {11}};
  for (const int buffers : {1, 2}) {
    expect_trains(shapes, buckets_of(64).bucket_buffers(buffers), random_gradients, {}, 3);
  }
}

TEST(Overlap, RandomGraphsOnEveryRank) {
  for (int trial = 0; trial < 6; ++trial) {
    const auto random_of = [trial](int64_t step, int rank) {
      return std::mt19937(static_cast<uint32_t>(trial * 10000 + step * 100 + rank));
    };
    const auto order = [&](int64_t step, int rank) {
      std::vector<size_t> shuffled = in_order(kSixParameters.size());
      auto random = random_of(step, rank);
      std::shuffle(shuffled.begin(), shuffled.end(), random);
      return shuffled;
    };
    const auto gradients = [&](const NamedParameters& parameters, int64_t step, int rank) {
      Gradients used = random_gradients(parameters, step, rank);
      auto random = random_of(step, rank + 50);
      for (const auto& named : parameters) {
        if (random() % 3 == 0) used.erase(named.first);
      }
      return used;
    };
    expect_trains(
        kSixParameters, buckets_of(trial % 2 == 0 ? 1 : 600).bucket_buffers(1 + trial % 3), gradients, order);
  }
}

TEST(Overlap, DroppedStepsOfUnlikeGraphsLeaveRanksInStep) {
  const int size = world()->size();
  const int rank = world()->rank();
  const NamedParameters parameters = make_parameters(kSixParameters);
  Reference reference(parameters);
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(), buckets_of(1).bucket_buffers(2));
  for (int step = 0; step < 6; ++step) {
    // Only rank 0 completes the first bucket of the backward that is dropped.
    Gradients dropped = random_gradients(parameters, 100 + step, rank);
    if (rank != 0) dropped.erase("p5");
    backward(parameters, dropped);
    optimizer.zero_grad();
    backward(parameters, random_gradients(parameters, step, rank));
    optimizer.step();
    reference.step(mean_gradients(size, [&](int r) { return random_gradients(parameters, step, r); }));
  }
  expect_close(full_state(optimizer), reference);
}

}  // namespace
}  // namespace zerosched::testing
