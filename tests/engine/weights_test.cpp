// step_weight() and join(): the mean over all samples, whoever has how many. Exact means: as one process with all
// samples computes it, up to the order of summation.
#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/clip_grad.h>
#include <zerosched/grad_scaler.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace zerosched::testing {
namespace {

/// Least squares over samples that are numbered over all ranks: a sample's gradient depends on the parameters.
struct Samples {
  static constexpr int64_t kInputs = 6;

  static at::Tensor input(int64_t sample) {
    return random_like(at::empty({kInputs}, at::kDouble), sample, 0, 1);
  }
  static at::Tensor target(int64_t sample) { return random_like(at::empty({3}, at::kDouble), sample, 0, 2); }
};

/// w x + b, and c, which only samples with an odd number use.
NamedParameters model(at::ScalarType dtype) {
  return make_parameters({{3, Samples::kInputs}, {3}, {3}}, dtype);
}

at::Tensor mean_loss(const NamedParameters& parameters, const std::vector<int64_t>& samples) {
  at::Tensor sum;
  const auto dtype = parameters[0].second.scalar_type();
  for (const int64_t sample : samples) {
    at::Tensor out = parameters[0].second.mv(Samples::input(sample).to(dtype)) + parameters[1].second;
    if (sample % 2 == 1) out = out * parameters[2].second;
    const at::Tensor loss = (out - Samples::target(sample).to(dtype)).square().sum();
    sum = sum.defined() ? sum + loss : loss;
  }
  return sum / static_cast<double>(samples.size());
}

std::vector<int64_t> numbers(int64_t begin, int64_t count) {
  std::vector<int64_t> all;
  for (int64_t i = 0; i < count; ++i) all.push_back(begin + i);
  return all;
}

/// How the two sides of a comparison train.
struct Trainer {
  at::ScalarType dtype = at::kDouble;
  bool overlap = true;
  bool clips = false, clips_by_function = false, scales = false, accumulates = false;
};

std::vector<Trainer> trainers() {
  std::vector<Trainer> all;
  for (const bool overlap : {true, false}) {
    Trainer plain, clips, by_function, scales, accumulates, single;
    clips.clips = by_function.clips_by_function = scales.scales = accumulates.accumulates = true;
    single.dtype = at::kFloat;
    scales.clips_by_function = true;
    for (Trainer* trainer : {&plain, &clips, &by_function, &scales, &accumulates, &single}) {
      trainer->overlap = overlap;
      all.push_back(*trainer);
    }
  }
  return all;
}

/// One step over `samples`; with none only the calls that every rank has to make.
void train_step(AdamWScheduleFree& optimizer, const NamedParameters& parameters, const Trainer& how,
    const std::vector<int64_t>& samples, GradScaler* scaler) {
  optimizer.zero_grad();
  if (!samples.empty()) {
    const auto scaled = [&](const at::Tensor& loss) {
      return scaler == nullptr ? loss : scaler->scale(loss);
    };
    if (how.accumulates) {
      // Two halves as one: each sample weighs the same.
      const auto half = static_cast<std::ptrdiff_t>(samples.size() / 2);
      const std::vector<int64_t> first(samples.begin(), samples.begin() + half);
      const std::vector<int64_t> second(samples.begin() + half, samples.end());
      const auto part = [&](const std::vector<int64_t>& of) {
        return scaled(mean_loss(parameters, of)) *
               (static_cast<double>(of.size()) / static_cast<double>(samples.size()));
      };
      if (!first.empty()) {
        const auto hold = optimizer.no_sync();
        part(first).backward();
      }
      part(second).backward();
    } else {
      scaled(mean_loss(parameters, samples)).backward();
    }
  }
  if (scaler != nullptr) scaler->unscale_(optimizer);
  if (how.clips_by_function) clip_grad_norm_(optimizer, 0.7);
  if (scaler == nullptr) {
    optimizer.step();
  } else {
    scaler->step(optimizer);
  }
}

std::unique_ptr<AdamWScheduleFree> make(const NamedParameters& parameters, const Trainer& how,
    const std::shared_ptr<Communicator>& communicator) {
  ShardingOptions sharding = buckets_of(150).overlap_backward(how.overlap);
  if (how.clips) sharding.max_grad_norm(0.7);
  return std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)},
      communicator, AdamWScheduleFreeOptions(0.05).weight_decay(0.1), sharding);
}

void expect_same_numbers(const State& a, const State& b, double tolerance) {
  for (const auto& [which, tensors] : b) {
    for (const auto& [name, expected] : tensors) {
      const double scale = std::max(expected.abs().max().item<double>(), 1e-30);
      EXPECT_LE((a.at(which).at(name) - expected).abs().max().item<double>(), tolerance * scale)
          << which << name;
    }
  }
}

double tolerance_of(const Trainer& how) { return how.dtype == at::kDouble ? 1e-12 : 2e-5; }

// 7 samples on rank 0, 3 on rank 1, none on rank 2, 2 on rank 3: as one process over all of them.
TEST(Weights, UnevenBatchesAreOneBatch) {
  const int size = world()->size();
  const int rank = world()->rank();
  const std::vector<int64_t> counts = {7, 3, 0, 2};
  int64_t in_all = 0, before = 0;
  for (int r = 0; r < size; ++r) in_all += counts[static_cast<size_t>(r)];
  for (int r = 0; r < rank; ++r) before += counts[static_cast<size_t>(r)];
  for (const Trainer& how : trainers()) {
    const NamedParameters parameters = model(how.dtype), alone = model(how.dtype);
    const auto optimizer = make(parameters, how, world());
    const auto single = make(alone, how, self_communicator());
    GradScaler scaler(GradScalerOptions().init_scale(64)), single_scaler(GradScalerOptions().init_scale(64));
    for (int64_t step = 0; step < 5; ++step) {
      const int64_t own = counts[static_cast<size_t>(rank)];
      optimizer->step_weight(static_cast<double>(own));
      train_step(
          *optimizer, parameters, how, numbers(step * in_all + before, own), how.scales ? &scaler : nullptr);
      train_step(*single, alone, how, numbers(step * in_all, in_all), how.scales ? &single_scaler : nullptr);
    }
    expect_same_numbers(full_state(*optimizer), full_state(*single), tolerance_of(how));
  }
}

// Rank r has r fewer batches than rank 0. Whoever has run out joins; the last batches are means over who is left.
TEST(Weights, JoinCarriesOnWithoutRanksThatHaveRunOut) {
  const int size = world()->size();
  const int rank = world()->rank();
  constexpr int64_t kBatch = 2, kMost = 5;
  for (const bool rank_zero_first : {false, true}) {
    // Out of batches first: rank 0, whose options the others step with as long as it is there, or the last rank.
    const auto batches_of = [&](int r) { return kMost - (rank_zero_first ? size - 1 - r : r); };
    for (const Trainer& how : trainers()) {
      const NamedParameters parameters = model(how.dtype), alone = model(how.dtype);
      const auto optimizer = make(parameters, how, world());
      const auto single = make(alone, how, self_communicator());
      GradScaler scaler(GradScalerOptions().init_scale(64)),
          single_scaler(GradScalerOptions().init_scale(64));
      for (int epoch = 0; epoch < 2; ++epoch) {
        for (int64_t batch = 0; batch < kMost; ++batch) {
          const double lr = 0.05 / static_cast<double>(1 + batch);  // joined ranks never hear of it
          const int64_t begin = (epoch * kMost + batch) * kBatch * size;
          if (batch < batches_of(rank)) {
            optimizer->param_groups()[0].options().set_lr(lr);
            train_step(*optimizer, parameters, how, numbers(begin + kBatch * rank, kBatch),
                how.scales ? &scaler : nullptr);
          }
          std::vector<int64_t> all;
          for (int r = 0; r < size; ++r) {
            if (batch >= batches_of(r)) continue;
            for (const int64_t sample : numbers(begin + kBatch * r, kBatch)) all.push_back(sample);
          }
          single->param_groups()[0].options().set_lr(lr);
          train_step(*single, alone, how, all, how.scales ? &single_scaler : nullptr);
        }
        optimizer->join();
        // A new epoch begins with the same options everywhere.
        optimizer->param_groups()[0].options().set_lr(0.05);
        scaler.load_state(single_scaler.get_scale(), single_scaler.growth_tracker());
      }
      expect_same_numbers(full_state(*optimizer), full_state(*single), tolerance_of(how));
      const auto evaluation = optimizer->eval_scope();
    }
  }
}

TEST(Weights, JoinWithWeightsAndDroppedGradients) {
  const int size = world()->size();
  const int rank = world()->rank();
  const NamedParameters parameters = model(at::kDouble), alone = model(at::kDouble);
  const Trainer how;
  const auto optimizer = make(parameters, how, world());
  const auto single = make(alone, how, self_communicator());
  if (rank == 0) {
    for (int64_t step = 0; step < 4; ++step) {
      optimizer->step_weight(3);
      if (step == 2) {  // changes its mind
        mean_loss(parameters, numbers(0, 2)).backward();
        optimizer->zero_grad();
        optimizer->step_weight(3);
      }
      train_step(*optimizer, parameters, how, numbers(step * 3, 3), nullptr);
    }
  }
  for (int64_t step = 0; step < 4; ++step) train_step(*single, alone, how, numbers(step * 3, 3), nullptr);
  optimizer->join();
  expect_same_numbers(full_state(*optimizer), full_state(*single), size == 1 ? 0 : 1e-12);
}

// The mean over an empty batch is NaN, and 0 times NaN is NaN.
TEST(Weights, WhatARankWithoutDataHasInGradDoesNotCount) {
  const int size = world()->size();
  if (size == 1) return;
  for (const bool overlap : {true, false}) {
    const NamedParameters parameters = make_parameters({{10}, {20}}), twins = make_parameters({{10}, {20}});
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), {}, buckets_of(1).overlap_backward(overlap));
    AdamWScheduleFree other({ParameterGroup(twins)}, self_communicator());
    Gradients gradients = random_gradients(parameters, 0, 0);
    backward(twins, gradients);
    other.step();
    if (world()->rank() > 0) {
      for (auto& named : gradients) named.second.fill_(std::numeric_limits<double>::quiet_NaN());
    }
    optimizer.step_weight(world()->rank() > 0 ? 0 : 5);
    backward(parameters, gradients);
    optimizer.step();
    State a = full_state(optimizer), b = full_state(other);
    expect_same_numbers(a, b, 1e-6);
  }
}

TEST(Weights, WithoutDataAnywhereNothingAdvances) {
  const NamedParameters parameters = make_parameters({{10}, {20}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, buckets_of(1).max_grad_norm(1.0));
  backward(parameters, random_gradients(parameters, 0, world()->rank()));
  optimizer.step();
  const State before = full_state(optimizer);
  optimizer.step_weight(0);
  backward(parameters, random_gradients(parameters, 1, world()->rank()));
  optimizer.step();
  expect_same_bits(full_state(optimizer), before);
  EXPECT_EQ(optimizer.skipped_steps(), 0);
  backward(parameters, random_gradients(parameters, 1, world()->rank()));
  optimizer.step();
}

TEST(Weights, AScalerTakesAStepWithoutDataForNoOverflow) {
  const NamedParameters parameters = make_parameters({{10}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  GradScaler scaler;
  optimizer.step_weight(0);
  EXPECT_FALSE(scaler.step(optimizer));
  EXPECT_EQ(scaler.get_scale(), 65536);
  EXPECT_EQ(scaler.skips_in_a_row(), 0);
  EXPECT_EQ(optimizer.skipped_steps(), 0);
}

// The scale grows, and backs off, while some ranks have joined.
TEST(Weights, AScalerJoinsToo) {
  const int rank = world()->rank();
  const NamedParameters parameters = make_parameters({{10}, {20}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, buckets_of(1));
  GradScaler scaler(GradScalerOptions().init_scale(1024).growth_interval(3));
  for (int epoch = 0; epoch < 2; ++epoch) {
    for (int64_t batch = 0; batch < (rank == 0 ? 5 : 2); ++batch) {
      Gradients gradients = random_gradients(parameters, batch, rank);
      for (auto& named : gradients) named.second = named.second * scaler.get_scale();
      if (batch == 4) gradients.at("p0")[0] = std::numeric_limits<float>::infinity();
      backward(parameters, gradients);
      EXPECT_EQ(scaler.step(optimizer), batch != 4);
    }
    scaler.join(optimizer);
    for (const auto& scale : gather_texts(std::to_string(scaler.get_scale())))
      EXPECT_EQ(scale, "1024.000000");
    EXPECT_EQ(scaler.growth_tracker(), 0);
  }
}

TEST(Weights, ThatA16BitTypeCannotCountAreRefused) {
  if (world()->size() == 1) return;
  for (const double weight : {1e-6, 4e-5, 1e10}) {
    const NamedParameters parameters = make_parameters({{10}}, at::kBFloat16);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
    world_barrier();
    expect_error([&] { optimizer.step_weight(weight); }, {"step_weight(", "65536ths", "BFloat16"});
  }
  const NamedParameters parameters = make_parameters({{10}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  world_barrier();
  expect_error([&] { optimizer.step_weight(1e39); }, {"step_weight("});
}

TEST(Weights, EqualWeightsOfPowersOfTwoAreTheOrdinaryMeanToTheBit) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const NamedParameters parameters = make_parameters(odd_shapes(), dtype),
                          twins = make_parameters(odd_shapes(), dtype);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, buckets_of(400));
    AdamWScheduleFree other({ParameterGroup(twins)}, world(), {}, buckets_of(400));
    for (int64_t step = 0; step < 3; ++step) {
      optimizer.step_weight(64);
      backward(parameters, random_gradients(parameters, step, world()->rank()));
      optimizer.step();
      backward(twins, random_gradients(twins, step, world()->rank()));
      other.step();
    }
    expect_same_bits(full_state(optimizer), full_state(other));
  }
}

TEST(Weights, MisuseIsNamed) {
  const int size = world()->size();
  const auto fresh = [&](const ShardingOptions& sharding = buckets_of(1)) {
    auto optimizer = std::make_unique<AdamWScheduleFree>(
        std::vector<ParameterGroup>{ParameterGroup(make_parameters({{10}, {20}}))}, world(),
        AdamWScheduleFreeOptions(), sharding);
    world_barrier();
    return optimizer;
  };
  expect_error([&] { fresh()->step_weight(-1); }, {"step_weight(-1)", "not negative"});
  expect_error([&] { fresh()->step_weight(std::nan("")); }, {"step_weight(nan)"});
  expect_error([&] { fresh(buckets_of(1).gradients(GradientInput::already_averaged))->step_weight(1); },
      {"already_averaged"});
  if (size == 1) return;
  expect_error(
      [&] { fresh(buckets_of(1).gradients(GradientInput::already_averaged))->join(); }, {"already_averaged"});
  {
    const NamedParameters parameters = make_parameters({{10}, {20}});
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, buckets_of(1));
    world_barrier();
    backward(parameters, random_gradients(parameters, 0, 0));
    expect_error([&] { optimizer.step_weight(1); }, {"step_weight()", "before the backward"});
  }
  {
    const NamedParameters parameters = make_parameters({{10}, {20}});
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, buckets_of(1));
    world_barrier();
    if (world()->rank() == 0) optimizer.step_weight(1);
    backward(parameters, random_gradients(parameters, 0, 0));
    expect_error([&] { optimizer.step(); },
        {"step_weight() was called on 1 of " + std::to_string(size) + " ranks", "on every rank"});
  }
  {
    const NamedParameters parameters = make_parameters({{10}, {20}});
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, buckets_of(1));
    world_barrier();
    backward(parameters, random_gradients(parameters, 0, 0));
    expect_error([&] { optimizer.join(); }, {"join()", "step() or zero_grad()"});
  }
}

}  // namespace
}  // namespace zerosched::testing
