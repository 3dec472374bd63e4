// Gradients of every kind and origin: dtypes, layouts, sparse, undefined, accumulated, tied and frozen.
#include "engine/toy.h"
#include "support/world.h"

#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/optim/sgd.h>

namespace zerosched::testing {
namespace {

// The same few steps on world() and by the reference, with gradients that differ between ranks.
void expect_trains(const NamedParameters& parameters, const ShardingOptions& sharding,
    const std::function<void(int64_t step)>& run_backward,
    const std::function<Gradients(int64_t step, int rank)>& gradients, double tolerance = 4e-6) {
  Reference reference(parameters);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(), sharding);
  for (int64_t step = 0; step < 4; ++step) {
    optimizer.zero_grad();
    run_backward(step);
    optimizer.step();
    reference.step(mean_gradients(world()->size(), [&](int rank) { return gradients(step, rank); }));
  }
  State state = full_state(optimizer);
  expect_parameters_are(parameters, state.at("y"));
  state.erase("y");  // rounded to the parameter's dtype
  expect_close(state, reference, tolerance);
}

TEST(Gradients, Float64ToItsOwnPrecision) {
  const NamedParameters parameters = make_parameters(odd_shapes(), at::kDouble);
  const auto gradients = [&](int64_t step, int rank) { return random_gradients(parameters, step, rank); };
  expect_trains(
      parameters, buckets_of(500),
      [&](int64_t step) { backward(parameters, gradients(step, world()->rank())); }, gradients, 1e-12);
}

TEST(Gradients, BFloat16) {
  for (const bool in_float : {true, false}) {
    for (const bool overlap : {true, false}) {
      const NamedParameters parameters = make_parameters(odd_shapes(), at::kBFloat16);
      const auto gradients = [&](int64_t step, int rank) { return random_gradients(parameters, step, rank); };
      ShardingOptions sharding = buckets_of(150).overlap_backward(overlap);
      if (in_float) sharding.reduce_dtype(at::kFloat);
      // Sums in bfloat16 are rounded to 8 bits; those in float32 are not.
      const double tolerance = in_float || world()->size() == 1 ? 4e-6 : 2e-2;
      expect_trains(
          parameters, sharding, [&](int64_t step) { backward(parameters, gradients(step, world()->rank())); },
          gradients, tolerance);
    }
  }
}

// Half as much on the wire, and 8 bits of each rank's gradient and of the sum.
TEST(Gradients, Float32SentAsBFloat16) {
  for (const bool overlap : {true, false}) {
    const NamedParameters parameters = make_parameters(odd_shapes());
    const auto gradients = [&](int64_t step, int rank) { return random_gradients(parameters, step, rank); };
    const auto sharding = buckets_of(150).overlap_backward(overlap).reduce_dtype(at::kBFloat16);
    expect_trains(
        parameters, sharding, [&](int64_t step) { backward(parameters, gradients(step, world()->rank())); },
        gradients, 2e-2);
  }
}

TEST(Gradients, BFloat16IsHalfOnTheWire) {
  const NamedParameters parameters = make_parameters({{1024, 8}, {1024}});
  std::map<bool, int64_t> bytes;
  for (const bool narrow : {false, true}) {
    auto sharding = ShardingOptions();
    if (narrow) sharding.reduce_dtype(at::kBFloat16);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, sharding);
    const Traffic before = optimizer.communicator()->traffic();
    backward(parameters, random_gradients(parameters, 0, world()->rank()));
    optimizer.step();
    bytes[narrow] = optimizer.communicator()->traffic().reduce_scatter.bytes - before.reduce_scatter.bytes;
  }
  if (world()->size() == 1) GTEST_SKIP() << "nothing is sent";
  EXPECT_NEAR(static_cast<double>(bytes[true]), 0.5 * static_cast<double>(bytes[false]), 2000);
}

// Reduced in float32 unless told otherwise.
TEST(Gradients, Float16) {
  for (const bool overlap : {true, false}) {
    const NamedParameters parameters = make_parameters(odd_shapes(), at::kHalf);
    const auto gradients = [&](int64_t step, int rank) { return random_gradients(parameters, step, rank); };
    expect_trains(
        parameters, buckets_of(150).overlap_backward(overlap),
        [&](int64_t step) { backward(parameters, gradients(step, world()->rank())); }, gradients, 4e-6);
  }
}

// Each as exact as its type: a bfloat16 gradient is rounded on its way, the others are not.
TEST(Gradients, MixedDtypes) {
  NamedParameters parameters = make_parameters({{30}, {31}, {32}, {33}}, at::kFloat);
  parameters[1].second = parameters[1].second.detach().to(at::kDouble).requires_grad_();
  parameters[3].second = parameters[3].second.detach().to(at::kBFloat16).requires_grad_();
  const std::map<std::string, double> tolerances = {
      {"p0", 4e-6}, {"p1", 1e-12}, {"p2", 4e-6}, {"p3", world()->size() == 1 ? 4e-6 : 2e-2}};
  for (const bool overlap : {true, false}) {
    Reference reference(parameters);
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), {}, buckets_of(200).overlap_backward(overlap));
    for (int64_t step = 0; step < 4; ++step) {
      optimizer.zero_grad();
      const auto of_rank = [&](int rank) { return random_gradients(parameters, step, rank); };
      backward(parameters, of_rank(world()->rank()));
      optimizer.step();
      reference.step(mean_gradients(world()->size(), of_rank));
    }
    const State state = full_state(optimizer);
    expect_parameters_are(parameters, state.at("y"));
    for (const char* which : {"z", "x", "v"}) {
      for (const auto& [name, tensor] : state.at(which)) {
        expect_close({{which, {{name, tensor}}}}, reference, tolerances.at(name));
      }
    }
    optimizer.zero_grad();
  }
}

TEST(Gradients, ChannelsLastParametersKeepTheirStrides) {
  const NamedParameters parameters = make_parameters({{4, 3, 5, 5}, {9, 4}});
  at::Tensor convolution = parameters[0].second;
  convolution.set_data(convolution.detach().contiguous(at::MemoryFormat::ChannelsLast));
  const std::vector<int64_t> strides = convolution.strides().vec();
  at::Tensor transposed = parameters[1].second;
  transposed.set_data(transposed.detach().t().contiguous().t());
  const auto gradients = [&](int64_t step, int rank) { return random_gradients(parameters, step, rank); };
  expect_trains(
      parameters, buckets_of(200),
      [&](int64_t step) { backward(parameters, gradients(step, world()->rank())); }, gradients);
  EXPECT_EQ(convolution.strides().vec(), strides);
  EXPECT_EQ(transposed.strides().vec(), (std::vector<int64_t>{1, 9}));
}

TEST(Gradients, SetByHandWithOtherStrides) {
  for (const bool overlap : {true, false}) {
    const NamedParameters parameters = make_parameters({{6, 7}, {5, 4, 3}});
    const auto gradients = [&](int64_t step, int rank) { return random_gradients(parameters, step, rank); };
    expect_trains(
        parameters, buckets_of(100).overlap_backward(overlap),
        [&](int64_t step) {
          Gradients own = gradients(step, world()->rank());
          parameters[0].second.mutable_grad() = own.at("p0").t().contiguous().t();
          parameters[1].second.mutable_grad() = own.at("p1").transpose(0, 2).contiguous().transpose(0, 2);
        },
        gradients);
  }
}

TEST(Gradients, SparseEmbedding) {
  for (const bool overlap : {true, false}) {
    const NamedParameters parameters = make_parameters({{11, 3}});
    const at::Tensor weight = parameters[0].second;
    const auto tokens = [](int64_t step, int rank) {
      return at::tensor({(step + rank) % 11, (2 * step + rank) % 11, (step + rank) % 11}, at::kLong);
    };
    const auto gradients = [&](int64_t step, int rank) {
      at::Tensor dense = at::zeros({11, 3});
      dense.index_add_(0, tokens(step, rank), at::full({3, 3}, 0.5));
      return Gradients{{"p0", dense}};
    };
    expect_trains(
        parameters, ShardingOptions().overlap_backward(overlap),
        [&](int64_t step) {
          const at::Tensor rows = at::embedding(weight, tokens(step, world()->rank()), /*padding_idx=*/-1,
              /*scale_grad_by_freq=*/false, /*sparse=*/true);
          (rows * 0.5).sum().backward();
        },
        gradients);
  }
}

TEST(Gradients, SparseAndDenseOfOneParameterAddUp) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const NamedParameters parameters = make_parameters({{11, 3}}, dtype);
    const at::Tensor weight = parameters[0].second;
    Reference reference(parameters);
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), {}, ShardingOptions().reduce_dtype(at::kFloat));
    const auto rows = [&](int64_t row) {
      return at::embedding(weight, at::tensor({row, row}, at::kLong), -1, false, /*sparse=*/true).sum();
    };
    {
      const auto hold = optimizer.no_sync();
      rows(3).backward();
      rows(4).backward();
    }
    (rows(4) + (weight * 0.25).sum()).backward();  // as a tied embedding and head
    optimizer.step();
    at::Tensor expected = at::full({11, 3}, 0.25);
    expected[3] += 2;
    expected[4] += 4;
    reference.step({{"p0", expected}});
    State state = full_state(optimizer);
    state.erase("y");
    expect_close(state, reference);
  }
}

// A hook may fire although backward had nothing to give: ready, but not used.
TEST(Gradients, Undefined) {
  const NamedParameters parameters = make_parameters({{20}, {21}, {22}});
  const auto gradients = [&](int64_t step, int rank) {
    Gradients used = random_gradients(parameters, step, rank);
    used.erase("p1");
    if (rank != 0) used.erase("p2");
    return used;
  };
  int fired = 0;
  expect_trains(
      parameters, buckets_of(1).bucket_buffers(2),
      [&](int64_t step) {
        const int rank = world()->rank();
        at::Tensor loss;
        for (size_t i = 0; i < 3; ++i) {
          const at::Tensor& parameter = parameters[i].second;
          at::Tensor input = parameter;
          if (i == 1 || (i == 2 && rank != 0)) {
            input = std::make_shared<torch::autograd::UndefinedGrad>()->apply({parameter}).front();
            ++fired;
          }
          const at::Tensor term = (input * random_like(parameter, step, rank, static_cast<int64_t>(i))).sum();
          loss = loss.defined() ? loss + term : term;
        }
        loss.backward();
      },
      gradients);
  EXPECT_GT(fired, 0);
}

TEST(Gradients, TiedWeightsAreOneParameter) {
  const NamedParameters parameters = make_parameters({{5, 4}, {6}});
  NamedParameters given = parameters;
  given.emplace_back("head.weight", parameters[0].second);
  Reference reference(parameters);
  AdamWScheduleFree optimizer({ParameterGroup(given)}, world());
  for (int64_t step = 0; step < 3; ++step) {
    const Gradients a = random_gradients(parameters, step, 0);
    const Gradients b = random_gradients(parameters, step + 50, 0);
    ((parameters[0].second * a.at("p0")).sum() + (given[2].second * b.at("p0")).sum() +
        (parameters[1].second * a.at("p1")).sum())
        .backward();
    optimizer.step();
    reference.step({{"p0", a.at("p0") + b.at("p0")}, {"p1", a.at("p1")}});
  }
  const State state = full_state(optimizer);
  EXPECT_EQ(state.at("z").count("head.weight"), 0U) << "known by its first name";
  expect_close(state, reference);
}

TEST(Gradients, FrozenParametersAreSentOnceAndStay) {
  const NamedParameters parameters = make_parameters({{5}, {6}, {7}});
  at::Tensor frozen = parameters[1].second;
  frozen.set_requires_grad(false);
  frozen.fill_(world()->rank() + 1.0);
  const NamedParameters trained = {parameters[0], parameters[2]};
  Reference reference(trained);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  EXPECT_TRUE(frozen.eq(1.0).all().item<bool>()) << "rank 0's";
  EXPECT_EQ(optimizer.full_state("z").count("p1"), 0U);
  for (int64_t step = 0; step < 3; ++step) {
    backward(trained, random_gradients(trained, step, 0));
    optimizer.step();
    reference.step(random_gradients(trained, step, 0));
  }
  EXPECT_TRUE(frozen.eq(1.0).all().item<bool>());
  expect_close(full_state(optimizer), reference);
}

TEST(Gradients, GroupsHaveOptionsOfTheirOwn) {
  const NamedParameters all = make_parameters({{50}, {51}, {52}, {53}});
  const NamedParameters first = {all[0], all[2]};
  const NamedParameters second = {all[1], all[3]};
  Reference::Options defaults, own;
  defaults.lr = 0.02;
  own.lr = 0.003;
  own.weight_decay = 0.3;
  own.warmup_steps = 4;
  own.beta1 = 0.5;
  Reference expected_first(first, defaults), expected_second(second, own);
  AdamWScheduleFree optimizer(
      {ParameterGroup(first),
          ParameterGroup(
              second, AdamWScheduleFreeOptions(0.003).weight_decay(0.3).warmup_steps(4).betas({0.5, 0.999}))},
      world(), AdamWScheduleFreeOptions(0.02), buckets_of(300));
  ASSERT_EQ(optimizer.param_groups().size(), 2U);
  for (int64_t step = 0; step < 6; ++step) {
    if (step == 3) {  // as a scheduler does
      optimizer.param_groups()[0].options().set_lr(0.001);
      expected_first.lr(0.001);
    }
    const auto of_rank = [&](int rank) { return random_gradients(all, step, rank); };
    backward(all, of_rank(world()->rank()));
    optimizer.step();
    const Gradients mean = mean_gradients(world()->size(), of_rank);
    expected_first.step({{"p0", mean.at("p0")}, {"p2", mean.at("p2")}});
    expected_second.step({{"p1", mean.at("p1")}, {"p3", mean.at("p3")}});
  }
  for (const auto& [which, tensors] : full_state(optimizer)) {
    expect_close({{which, {{"p0", tensors.at("p0")}, {"p2", tensors.at("p2")}}}}, expected_first);
    expect_close({{which, {{"p1", tensors.at("p1")}, {"p3", tensors.at("p3")}}}}, expected_second);
  }
}

TEST(Gradients, ASchedulerOfLibTorchChangesLr) {
  const NamedParameters parameters = make_parameters({{10}, {20}});
  Reference::Options expected_options;
  expected_options.lr = 0.01;
  Reference reference(parameters, expected_options);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(0.01));
  torch::optim::StepLR scheduler(optimizer, /*step_size=*/2, /*gamma=*/0.5);
  // Halves at its third, fifth, ... step: what a plain optimizer gets is what ours must get.
  torch::optim::SGD plain(std::vector<at::Tensor>{at::zeros({1}).requires_grad_()}, 0.01);
  torch::optim::StepLR expected(plain, /*step_size=*/2, /*gamma=*/0.5);
  for (int64_t step = 0; step < 6; ++step) {
    backward(parameters, random_gradients(parameters, step, 0));
    optimizer.step();
    reference.lr(plain.param_groups()[0].options().get_lr());
    reference.step(random_gradients(parameters, step, 0));
    scheduler.step();
    expected.step();
  }
  EXPECT_LT(plain.param_groups()[0].options().get_lr(), 0.005);
  expect_close(full_state(optimizer), reference);
}

TEST(Gradients, AClosureRunsWithGradientsAndReturnsItsLoss) {
  const NamedParameters parameters = make_parameters({{10}});
  Reference reference(parameters);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  const at::NoGradGuard no_grad;
  for (int64_t step = 0; step < 3; ++step) {
    const Gradients gradients = random_gradients(parameters, step, 0);
    const float expected_loss = (parameters[0].second * gradients.at("p0")).sum().item<float>();
    const at::Tensor loss = optimizer.step([&] {
      optimizer.zero_grad();
      const at::Tensor value = (parameters[0].second * gradients.at("p0")).sum();
      value.backward();
      return value;
    });
    EXPECT_EQ(loss.item<float>(), expected_loss);
    reference.step(gradients);
  }
  expect_close(full_state(optimizer), reference);
}

}  // namespace
}  // namespace zerosched::testing
