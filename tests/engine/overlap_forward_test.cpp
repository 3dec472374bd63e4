// Forward that begins while parameters arrive: the same bits, who waits for what, and what finds a forgotten wait.
#include "engine/gather_log.h"
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/nn/modules/linear.h>

#include <cmath>
#include <limits>
#include <set>
#include <thread>

namespace zerosched::testing {
namespace {

const std::vector<std::vector<int64_t>> kFourParameters = {{40}, {41}, {42}, {43}};
using Events = std::vector<std::string>;

/// Of buckets, in any order.
std::set<std::string> waits(const std::vector<int>& buckets) {
  std::set<std::string> events;
  for (const int bucket : buckets) events.insert("wait " + std::to_string(bucket));
  return events;
}

// What forward reads in each step, and what is left at the end. Two optimizers, of three groups in all, that step by
// turns, with an evaluation, a checkpoint and a dropped backward among the steps.
std::vector<at::Tensor> bits_of(
    const ShardingOptions& sharding, at::ScalarType dtype, const std::string& folder) {
  const NamedParameters all = make_parameters(odd_shapes(), dtype);
  const NamedParameters one(all.begin(), all.begin() + 3), two(all.begin() + 3, all.begin() + 6);
  const std::vector<NamedParameters> trained = {{all.begin(), all.begin() + 6}, {all.begin() + 6, all.end()}};
  AdamWScheduleFree first({ParameterGroup(one), ParameterGroup(two, AdamWScheduleFreeOptions(0.1))}, world(),
      AdamWScheduleFreeOptions(0.01), sharding);
  AdamWScheduleFree second({ParameterGroup(trained[1])}, world(), AdamWScheduleFreeOptions(0.02), sharding);
  const std::vector<AdamWScheduleFree*> optimizers = {&first, &second};
  const bool averaged = sharding.gradients() == GradientInput::already_averaged;
  std::vector<at::Tensor> seen;
  const auto read_all = [&] {
    for (const auto& [name, parameter] : all) seen.push_back(parameter.detach().clone());
  };
  for (int64_t step = 0; step < 7; ++step) {
    for (size_t o = 0; o < 2; ++o) {
      for (const auto& named : all) {
        first.ready(named.second);
        second.ready({named.second});
        seen.push_back(named.second.detach().clone());
      }
      const Gradients gradients = random_gradients(trained[o], step, averaged ? 0 : world()->rank());
      if (step == 4) {
        backward(trained[o], gradients);
        optimizers[o]->zero_grad();
      }
      backward(trained[o], gradients);
      optimizers[o]->step();
      optimizers[o]->zero_grad();
    }
    if (step == 1) {
      const auto evaluation = first.eval_scope();
      const auto other_evaluation = second.eval_scope();
      read_all();
    }
    if (step == 2) {
      first.save_checkpoint(folder + "/first");
      second.save_checkpoint(folder + "/second");
    }
    if (step == 5) {
      first.load_checkpoint(folder + "/first");
      second.load_checkpoint(folder + "/second");
    }
  }
  for (AdamWScheduleFree* optimizer : optimizers) {
    for (const auto& [which, tensors] : full_state(*optimizer)) {
      for (const auto& [name, tensor] : tensors) seen.push_back(tensor);
    }
  }
  read_all();
  return seen;
}

void expect_same_bits_with_and_without(const ShardingOptions& sharding, at::ScalarType dtype = at::kFloat) {
  const Scratch scratch;
  const auto plain = bits_of(sharding, dtype, scratch.path());
  for (const bool checks : {false, true}) {
    const auto overlapping =
        bits_of(ShardingOptions(sharding).overlap_forward(true).check_ready(checks), dtype, scratch.path());
    ASSERT_EQ(overlapping.size(), plain.size());
    size_t different = 0;
    for (size_t i = 0; i < plain.size(); ++i) different += same_bits(overlapping[i], plain[i]) ? 0 : 1;
    EXPECT_EQ(different, 0U) << (checks ? "of " : "with check_ready of ") << plain.size();
  }
}

TEST(OverlapForward, GivesTheSameBits) {
  for (const int64_t bytes : {1, 300, 1 << 20}) expect_same_bits_with_and_without(buckets_of(bytes));
}

TEST(OverlapForward, GivesTheSameBitsInEveryDtype) {
  for (const at::ScalarType dtype : {at::kDouble, at::kBFloat16, at::kHalf}) {
    expect_same_bits_with_and_without(buckets_of(300), dtype);
  }
}

TEST(OverlapForward, GivesTheSameBitsInEveryMode) {
  expect_same_bits_with_and_without(buckets_of(300).overlap_backward(false));
  expect_same_bits_with_and_without(buckets_of(300).gradients(GradientInput::already_averaged));
  expect_same_bits_with_and_without(buckets_of(300).max_grad_norm(0.1));
  expect_same_bits_with_and_without(buckets_of(300).bucket_buffers(1).non_finite(NonFinite::skip));
}

// An optimizer over parameters of a bucket each, of which the last is in bucket 0.
struct Logged {
  explicit Logged(const ShardingOptions& sharding = buckets_of(1).overlap_forward(true))
      : optimizer({ParameterGroup(parameters)}, std::make_shared<GatherLog>(world(), log), {}, sharding) {}

  void step(int64_t number = 0) {
    backward(parameters, random_gradients(parameters, number, world()->rank()));
    optimizer.step();
  }
  std::set<std::string> events() {
    const Events taken = log->take();
    return {taken.begin(), taken.end()};
  }

  std::shared_ptr<Log> log = std::make_shared<Log>();
  NamedParameters parameters = make_parameters(kFourParameters);
  AdamWScheduleFree optimizer;
};

TEST(OverlapForward, GathersLeaveInTheOrderOfForwardAndNobodyWaits) {
  Logged job;
  const auto expect_gathers = [&](const std::vector<size_t>& order, const Events& expected) {
    backward(job.parameters, random_gradients(job.parameters, 0, world()->rank()), order);
    job.log->take();
    job.optimizer.step();
    EXPECT_EQ(job.log->take(), expected);
  };
  expect_gathers({2, 0, 3, 1}, {"gather 3", "gather 2", "gather 1", "gather 0"});
  if (world()->size() == 1) return;  // where nothing is reduced there is no order in which gradients leave
  // Parameters are used in this order, and their buckets in that of the first step.
  expect_gathers({2, 0, 3, 1}, {"gather 1", "gather 3", "gather 0", "gather 2"});
}

TEST(OverlapForward, WithoutItStepWaits) {
  Logged job(buckets_of(1));
  job.step();
  EXPECT_EQ(job.log->take(),
      (Events{"gather 0", "gather 1", "gather 2", "gather 3", "wait 0", "wait 1", "wait 2", "wait 3"}));
  job.optimizer.ready(job.parameters);
  EXPECT_EQ(job.log->take(), Events());
}

TEST(OverlapForward, ReadyWaitsForTheBucketsOfWhatItIsGiven) {
  Logged job;
  job.optimizer.ready(job.parameters);
  EXPECT_EQ(job.events(), waits({}));
  job.step();
  job.log->take();
  job.optimizer.ready(at::ones({3}));
  job.optimizer.ready({at::Tensor(), job.parameters[1].second.view({41, 1})});
  job.optimizer.ready(make_parameters(kFourParameters));
  EXPECT_EQ(job.events(), waits({}));
  const at::Tensor& first = job.parameters[0].second;
  job.optimizer.ready(first);
  EXPECT_EQ(job.events(), waits({3}));
  job.optimizer.ready({first, job.parameters[2].second, first});
  EXPECT_EQ(job.events(), waits({1}));
  job.optimizer.ready(job.parameters);
  EXPECT_EQ(job.events(), waits({0, 2}));
  job.optimizer.ready(job.parameters);
  EXPECT_EQ(job.events(), waits({}));
}

TEST(OverlapForward, ReadyKnowsModulesAndTiedWeights) {
  torch::manual_seed(1);
  torch::nn::Linear in(8, 8), middle(8, 8), out(torch::nn::LinearOptions(8, 8).bias(false));
  out->weight = in->weight;
  torch::jit::Module script("Script");
  script.register_parameter("w", middle->weight, false);
  script.register_parameter("b", middle->bias, false);
  const NamedParameters parameters = {{"in.weight", in->weight}, {"in.bias", in->bias},
      {"middle.weight", middle->weight}, {"middle.bias", middle->bias}};
  const auto log = std::make_shared<Log>();
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, std::make_shared<GatherLog>(world(), log), {},
      buckets_of(1).overlap_forward(true));
  const auto waited_by = [&](const std::function<void()>& call) {
    backward(parameters, random_gradients(parameters, 0, world()->rank()));
    optimizer.step();
    log->take();
    call();
    const Events taken = log->take();
    return std::set<std::string>(taken.begin(), taken.end());
  };
  EXPECT_EQ(waited_by([&] { optimizer.ready(*in); }), waits({3, 2}));
  EXPECT_EQ(waited_by([&] { optimizer.ready(in->parameters()); }), waits({3, 2}));
  EXPECT_EQ(waited_by([&] { optimizer.ready(script); }), waits({1, 0}));
  EXPECT_EQ(waited_by([&] { optimizer.ready(NamedParameters{{"head", out->weight}}); }), waits({3}));
  // Other storage, and the same parameter.
  EXPECT_EQ(waited_by([&] {
    const at::Tensor before = middle->weight.data();
    middle->weight.set_data(before.clone());
    optimizer.ready(*middle);
    middle->weight.set_data(before);
  }),
      waits({1, 0}));
}

TEST(OverlapForward, ReadyMayBeCalledFromSeveralThreads) {
  Logged job;
  for (int64_t step = 0; step < 5; ++step) {
    job.step(step);
    job.log->take();
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back([&] { job.optimizer.ready(job.parameters); });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(job.log->take().size(), kFourParameters.size());
  }
}

// Stands in for a forward whose gradients depend on parameters.
at::Tensor squares(const NamedParameters& parameters) {
  at::Tensor loss = at::zeros({});
  for (const auto& [name, parameter] : parameters) loss = loss + parameter.square().sum();
  return loss;
}

TEST(OverlapForward, CheckReadyMakesAForgottenParameterNaN) {
  Logged job(buckets_of(1).overlap_forward(true).check_ready(true));
  job.step();
  for (size_t p = 0; p < job.parameters.size(); ++p) {
    if (p != 1) job.optimizer.ready(job.parameters[p].second);
  }
  for (size_t p = 0; p < job.parameters.size(); ++p) {
    const at::Tensor is_nan = at::isnan(job.parameters[p].second.detach());
    EXPECT_TRUE(p == 1 ? is_nan.all().item<bool>() : !is_nan.any().item<bool>()) << p;
  }
  const at::Tensor loss = squares(job.parameters);
  EXPECT_TRUE(std::isnan(loss.item<double>()));
  loss.backward();
  expect_error([&] { job.optimizer.step(); },
      {"gradient of parameter 'p1'", "forward used a parameter without ready()"});
}

TEST(OverlapForward, AnErrorOfNumbersThatAreNotFiniteNamesReady) {
  for (const bool overlaps : {false, true}) {
    Logged job(buckets_of(1).overlap_forward(overlaps));
    (squares(job.parameters) * std::numeric_limits<double>::quiet_NaN()).backward();
    try {
      job.optimizer.step();
      ADD_FAILURE();
    } catch (const std::exception& error) {
      EXPECT_EQ(std::string(error.what()).find("check_ready(true)") != std::string::npos, overlaps);
    }
  }
}

TEST(OverlapForward, CheckReadyNeedsSomethingToCheck) {
  expect_error([] { Logged(buckets_of(1).check_ready(true)); },
      {"ShardingOptions::check_ready", "set overlap_forward(true) too"});
}

// A graph is stale if it is from before the step, and not because of what has arrived since it was recorded.
TEST(OverlapForward, GraphsAreStaleByStepsAndNotByGathers) {
  for (const bool checks : {false, true}) {
    Logged job(buckets_of(1).overlap_forward(true).check_ready(checks));
    const at::Tensor stale = squares(job.parameters);
    stale.backward({}, /*retain_graph=*/true);
    job.optimizer.step();
    const at::Tensor& first = job.parameters[0].second;
    const at::Tensor& second = job.parameters[1].second;
    job.optimizer.ready(first);
    at::Tensor loss = first.square().sum();  // saved while the others are on their way
    job.optimizer.ready(second);
    loss = loss + second.square().sum();
    loss.backward();
    job.optimizer.step();
    EXPECT_TRUE(std::isfinite(job.optimizer.grad_norm()));
    expect_error([&] { stale.backward(); }, {"modified by an inplace operation"});
  }
}

// Nobody knows how much of it a gather has undone.
TEST(OverlapForward, AParameterThatIsWrittenWhileItArrivesIsAnError) {
  const std::vector<std::string> parts = {"parameter 'p2' was written between step() and ready()"};
  const auto write = [](const at::Tensor& parameter) {
    const at::NoGradGuard no_grad;
    at::Tensor(parameter).add_(1);
  };
  for (const bool checks : {false, true}) {
    for (const bool by_ready : {false, true}) {
      Logged job(buckets_of(1).overlap_forward(true).check_ready(checks));
      job.step();
      job.optimizer.ready(job.parameters[3].second);
      write(job.parameters[2].second);
      job.optimizer.ready(job.parameters[1].second);
      expect_error(
          [&] { by_ready ? job.optimizer.ready(job.parameters) : job.optimizer.reset_from_parameters(); },
          parts);
    }
    // As without the option, once it has been waited for.
    Logged job(buckets_of(1).overlap_forward(true).check_ready(checks));
    job.step();
    job.optimizer.ready(job.parameters);
    write(job.parameters[2].second);
    expect_error([&] { job.optimizer.eval(); }, {"parameter 'p2' was written"});
    job.optimizer.reset_from_parameters();
    job.step(1);
    expect_parameters_are(job.parameters, job.optimizer.full_state("y"));
  }
}

}  // namespace
}  // namespace zerosched::testing
