// Clipping and logging between backward and step(), where .grad is not there; and what becomes of code that uses it.
#include "engine/toy.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/clip_grad.h>
#include <zerosched/grad_scaler.h>

#include <torch/nn/utils/clip_grad.h>

#include <cmath>
#include <limits>

namespace zerosched::testing {
namespace {

const std::vector<std::vector<int64_t>> kShapes = {{40}, {41}, {7, 6}};

class ClipGrad : public ::testing::TestWithParam<bool> {
 protected:
  const bool overlap = GetParam();
  const int size = world()->size();
  const int rank = world()->rank();
  NamedParameters parameters;

  /// Over fresh parameters.
  std::unique_ptr<AdamWScheduleFree> make(ShardingOptions sharding = buckets_of(1)) {
    parameters = make_parameters(kShapes);
    auto optimizer =
        std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)}, world(),
            AdamWScheduleFreeOptions(0.01), sharding.overlap_backward(overlap));
    world_barrier();
    return optimizer;
  }
  void run_backward(int64_t step, int64_t of_rank) {
    backward(parameters, random_gradients(parameters, step, of_rank));
  }
  Gradients mean(int64_t step) const {
    return mean_gradients(size, [&](int r) { return random_gradients(parameters, step, r); });
  }
  /// A plain optimizer's parameters with the averaged gradient in .grad.
  NamedParameters with_gradients(int64_t step) const {
    NamedParameters plain = make_parameters(kShapes, at::kDouble);
    set_gradients(plain, mean(step));
    return plain;
  }
  static std::vector<at::Tensor> tensors_of(const NamedParameters& named) {
    std::vector<at::Tensor> tensors;
    for (const auto& parameter : named) tensors.push_back(parameter.second);
    return tensors;
  }
  static Gradients gradients_of(const NamedParameters& named) {
    Gradients gradients;
    for (const auto& [name, parameter] : named) gradients[name] = parameter.grad();
    return gradients;
  }
};

TEST_P(ClipGrad, ByNormIsTorchsOnTheAveragedGradient) {
  for (const double norm_type : {2.0, 1.0, 3.0, std::numeric_limits<double>::infinity()}) {
    const auto optimizer = make();
    Reference::Options options;
    options.lr = 0.01;
    Reference reference(parameters, options);
    for (int64_t step = 0; step < 4; ++step) {
      // Clips, hardly clips, does not.
      const double max_norm = step == 3 ? 1e9 : 0.5 + 3 * static_cast<double>(step);
      const NamedParameters plain = with_gradients(step);
      const double expected = torch::nn::utils::clip_grad_norm_(tensors_of(plain), max_norm, norm_type);
      optimizer->zero_grad();
      run_backward(step, rank);
      const double norm = clip_grad_norm_(*optimizer, max_norm, norm_type);
      EXPECT_NEAR(norm, expected, 1e-6 * expected) << "norm_type " << norm_type;
      optimizer->step();
      reference.step(gradients_of(plain));
      if (norm_type == 2) {
        EXPECT_NEAR(optimizer->grad_norm(), expected, 1e-6 * expected) << "before clipping";
      }
    }
    expect_close(full_state(*optimizer), reference);
  }
}

TEST_P(ClipGrad, ByValueIsTorchsOnTheAveragedGradient) {
  const auto optimizer = make();
  Reference::Options options;
  options.lr = 0.01;
  Reference reference(parameters, options);
  for (int64_t step = 0; step < 4; ++step) {
    const NamedParameters plain = with_gradients(step);
    torch::nn::utils::clip_grad_value_(tensors_of(plain), 0.3);
    const double norm = torch::nn::utils::clip_grad_norm_(tensors_of(plain), 2.0);
    optimizer->zero_grad();
    run_backward(step, rank);
    clip_grad_value_(*optimizer, 0.3);
    EXPECT_NEAR(clip_grad_norm_(*optimizer, 2.0), norm, 1e-6 * norm);
    optimizer->step();
    reference.step(gradients_of(plain));
  }
  expect_close(full_state(*optimizer), reference);
}

TEST_P(ClipGrad, AfterAccumulationAndWithAScaler) {
  const auto optimizer = make();
  Reference::Options options;
  options.lr = 0.01;
  Reference reference(parameters, options);
  GradScaler scaler(GradScalerOptions().init_scale(1024));
  for (int64_t step = 0; step < 3; ++step) {
    NamedParameters plain = with_gradients(step);
    Gradients sum = gradients_of(plain);
    for (const auto& [name, gradient] : mean(step + 100)) sum.at(name) += gradient;
    set_gradients(plain, sum);
    const double expected = torch::nn::utils::clip_grad_norm_(tensors_of(plain), 1.5);
    optimizer->zero_grad();
    const auto scaled = [&](int64_t which) {
      Gradients gradients = random_gradients(parameters, which, rank);
      for (auto& named : gradients) named.second = named.second * scaler.get_scale();
      backward(parameters, gradients);
    };
    {
      const auto hold = optimizer->no_sync();
      scaled(step + 100);
    }
    scaled(step);
    scaler.unscale_(*optimizer);
    EXPECT_NEAR(clip_grad_norm_(*optimizer, 1.5), expected, 1e-6 * expected);
    EXPECT_TRUE(scaler.step(*optimizer));
    reference.step(gradients_of(plain));
  }
  expect_close(full_state(*optimizer), reference);
}

TEST_P(ClipGrad, TogetherWithTheOption) {
  const auto optimizer = make(buckets_of(1).max_grad_norm(0.5));
  Reference::Options options;
  options.lr = 0.01;
  Reference reference(parameters, options);
  const NamedParameters plain = with_gradients(0);
  const double expected = torch::nn::utils::clip_grad_norm_(tensors_of(plain), 0.5);
  run_backward(0, rank);
  EXPECT_NEAR(clip_grad_norm_(*optimizer, 2.0), expected, 1e-6 * expected);
  optimizer->step();
  reference.step(gradients_of(plain));
  EXPECT_NEAR(optimizer->grad_norm(), expected, 1e-6 * expected);
  expect_close(full_state(*optimizer), reference);
}

TEST_P(ClipGrad, NormsOfParametersAreThoseOfTheAveragedGradient) {
  const auto optimizer = make();
  for (int64_t step = 0; step < 2; ++step) {
    optimizer->zero_grad();
    Gradients gradients = random_gradients(parameters, step, rank);
    if (step == 1) gradients.erase("p1");
    backward(parameters, gradients);
    if (step == 1) clip_grad_norm_(*optimizer, 0.1);
    optimizer->step();
    const std::map<std::string, double> norms = optimizer->grad_norms();
    ASSERT_EQ(norms.size(), parameters.size());
    double squares = 0;
    for (const auto& [name, gradient] : mean(step)) {
      const double expected = step == 1 && name == "p1" ? 0 : gradient.norm().item<double>();
      EXPECT_NEAR(norms.at(name), expected, 1e-6 * expected) << name;
      squares += norms.at(name) * norms.at(name);
    }
    EXPECT_NEAR(std::sqrt(squares), optimizer->grad_norm(), 1e-6 * std::sqrt(squares));
  }
  if (!overlap) return;  // there the step keeps what it has reduced
  run_backward(2, rank);
  expect_error([&] { optimizer->grad_norms(); }, {"the next backward has begun"});
}

TEST_P(ClipGrad, SayWhatIsWrongWithTheirArguments) {
  expect_error([&] { clip_grad_norm_(*make(), -1); }, {"max_norm", "-1"});
  expect_error([&] { clip_grad_norm_(*make(), 1, 0); }, {"norm_type", "positive"});
  expect_error([&] { clip_grad_value_(*make(), -1); }, {"clip_value", "-1"});
  const auto optimizer = make();
  optimizer->eval();
  expect_error([&] { clip_grad_norm_(*optimizer, 1); }, {"eval mode"});
}

TEST_P(ClipGrad, RanksThatClipDifferentlyAreStopped) {
  if (size == 1) return;
  const auto optimizer = make();
  run_backward(0, rank);
  expect_error(
      [&] {
        clip_grad_norm_(*optimizer, rank == 0 ? 1.0 : 2.0);
        optimizer->step();
        optimizer->zero_grad();
        run_backward(1, rank);
        optimizer->step();
      },
      {"clip_grad_norm_(2, 2) on rank ", "clip_grad_norm_(1, 2) on rank 0", "same arguments"});
}

INSTANTIATE_TEST_SUITE_P(Modes, ClipGrad, ::testing::Bool(),
    [](const auto& info) { return info.param ? "Overlapping" : "Compatible"; });

class Grad : public ClipGrad {};

TEST_P(Grad, AGradientThatIsPutThereAfterBackwardIsNamed) {
  for (const int buffers : {1, 3}) {  // some wait for a buffer in .grad
    for (size_t p = 0; p < kShapes.size(); ++p) {
      const auto optimizer = make(buckets_of(1).bucket_buffers(buffers));
      run_backward(0, rank);
      parameters[p].second.mutable_grad() = at::ones_like(parameters[p].second);
      expect_error([&] { optimizer->step(); }, {"gradient of parameter 'p" + std::to_string(p) + "'",
                                                   "between backward and step()", "overlap_backward(false)"});
    }
  }
}

TEST_P(Grad, NoiseOnAGradientThatWaitsIsNamed) {
  if (size == 1) return;
  const auto optimizer = make(buckets_of(1).bucket_buffers(1));
  run_backward(0, rank);
  bool found = false;
  for (const auto& named : parameters) {
    if (!named.second.grad().defined()) continue;
    named.second.mutable_grad().add_(1);
    found = true;
  }
  // Whether any waits depends on how fast peers are; whoever finds one says so, and the others hear of it.
  std::string finds;
  for (const std::string& each : gather_texts(found ? "1" : "")) finds += each;
  if (finds.empty()) {
    optimizer->step();
  } else {
    expect_error([&] { optimizer->step(); }, {"between backward and step()", "overlap_backward(false)"});
  }
}

TEST_P(Grad, ABackwardUnderNoSyncAfterTheOneThatSendsIsRefused) {
  for (const int buffers : {1, 3}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const NamedParameters fresh = make_parameters(kShapes, dtype);
      AdamWScheduleFree optimizer(
          {ParameterGroup(fresh)}, world(), {}, buckets_of(1).bucket_buffers(buffers));
      world_barrier();
      backward(fresh, random_gradients(fresh, 0, rank));
      {
        const auto hold = optimizer.no_sync();
        backward(fresh, random_gradients(fresh, 1, rank));
      }
      expect_error([&] { optimizer.step(); }, {"gradient of parameter 'p2' arrived twice", "no_sync()"});
    }
  }
}

TEST_P(Grad, ABackwardAfterClippingIsRefused) {
  const auto optimizer = make();
  Gradients gradients = random_gradients(parameters, 0, rank);
  gradients.erase("p0");
  backward(parameters, gradients);
  clip_grad_norm_(*optimizer, 1.0);
  world_barrier();
  backward(parameters, {{"p0", at::ones({40})}});
  expect_error([&] { optimizer->step(); }, {"gradient of parameter 'p0'", "Clip after the last backward"});
}

TEST_P(Grad, WithCheckGradReadingItFailsLoudly) {
  for (const bool waits : {false, true}) {
    const auto optimizer = make(buckets_of(1).bucket_buffers(waits ? 1 : 3).check_grad(true));
    const auto plain = [&] {
      const NamedParameters of_optimizer = std::move(parameters);
      auto other = make(buckets_of(1));
      for (int64_t step = 0; step < 3; ++step) {
        run_backward(step, rank);
        other->step();
      }
      State state = full_state(*other);
      parameters = of_optimizer;
      return state;
    }();
    for (int64_t step = 0; step < 3; ++step) {
      run_backward(step, rank);
      if (!waits) {
        const std::vector<std::string> parts = {
            "zerosched: .grad of parameter 'p", "clip_grad_norm_", "step()"};
        expect_error([&] { torch::nn::utils::clip_grad_norm_(tensors_of(parameters), 0.5); }, parts);
        expect_error([&] { parameters[0].second.grad().add(1); }, parts);
        expect_error([&] { parameters[2].second.mutable_grad().mul_(2); }, parts);
        expect_error([&] { parameters[1].second.grad().sum().item<double>(); }, parts);
      }
      optimizer->step();
      for (const auto& named : parameters) EXPECT_FALSE(named.second.grad().defined());
    }
    expect_same_bits(full_state(*optimizer), plain);
    run_backward(0, rank);
    optimizer->zero_grad();
    for (const auto& named : parameters) EXPECT_FALSE(named.second.grad().defined());
  }
}

INSTANTIATE_TEST_SUITE_P(Mode, Grad, ::testing::Values(true), [](const auto&) { return "Overlapping"; });

TEST(CompatibleGrad, ChangedBetweenClippingAndStepIsNamed) {
  const NamedParameters parameters = make_parameters(kShapes);
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), {}, buckets_of(1).overlap_backward(false));
  world_barrier();
  backward(parameters, random_gradients(parameters, 0, world()->rank()));
  clip_grad_norm_(optimizer, 1.0);
  world_barrier();  // or a quick rank's error would reach slow ones there
  parameters[1].second.mutable_grad().mul_(2);
  expect_error(
      [&] { optimizer.step(); }, {"gradient of parameter 'p1'", "changed between clipping and step()"});
}

// Each rank by its own norm, and not the average by its: it writes through data() and leaves no trace but the elements.
TEST(CompatibleGrad, TheClipOfLibTorchIsNamed) {
  const int size = world()->size();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const NamedParameters parameters = make_parameters(kShapes, dtype);
    std::vector<at::Tensor> tensors;
    for (const auto& named : parameters) tensors.push_back(named.second);
    AdamWScheduleFree optimizer(
        {ParameterGroup(parameters)}, world(), {}, buckets_of(1).overlap_backward(false));
    world_barrier();
    const auto run_backward = [&](int64_t step) {
      optimizer.zero_grad();
      Gradients gradients = random_gradients(parameters, step, world()->rank());
      for (auto& named : gradients) named.second = named.second * (1 + world()->rank());
      backward(parameters, gradients);
    };
    // Edits that are the user's own business.
    run_backward(0);
    for (const at::Tensor& tensor : tensors) tensor.mutable_grad().mul_(0.25);
    optimizer.step();
    run_backward(1);
    for (const at::Tensor& tensor : tensors) tensor.grad().data().mul_(1 + world()->rank());
    optimizer.step();
    run_backward(2);
    for (const at::Tensor& tensor : tensors) tensor.grad().data().add_(at::rand_like(tensor), 0.1);
    optimizer.step();
    run_backward(2);
    if (world()->rank() == 0) {
      for (const at::Tensor& tensor : tensors) tensor.mutable_grad().zero_();  // a batch that does not count
    }
    optimizer.step();
    run_backward(3);
    torch::nn::utils::clip_grad_norm_(tensors, 1e9);  // does not clip
    optimizer.step();
    run_backward(4);
    torch::nn::utils::clip_grad_norm_(tensors, 0.5);
    if (size == 1) {
      optimizer.step();
      continue;
    }
    expect_error([&] { optimizer.step(); },
        {"multiplied with", "on rank 0", "zerosched::clip_grad_norm_(optimizer, max_norm)"});
  }
}

TEST(AveragedGrad, AParameterThatOneRankForgotIsNamed) {
  const int size = world()->size();
  if (size == 1) return;
  const NamedParameters parameters = make_parameters(kShapes);
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), {}, buckets_of(1).gradients(GradientInput::already_averaged));
  world_barrier();
  Gradients gradients = random_gradients(parameters, 0, 0);
  set_gradients(parameters, gradients);
  optimizer.step();
  // Averaged in another order on every rank: the last bits differ, and that is all right.
  for (auto& named : gradients) named.second = named.second * (1 + 1e-7 * world()->rank());
  set_gradients(parameters, gradients);
  optimizer.step();
  gradients.at("p1") = random_gradients(parameters, 0, world()->rank()).at("p1");
  set_gradients(parameters, gradients);
  expect_error(
      [&] { optimizer.step(); }, {"gradient of parameter 'p1' has norm", "on rank 0", "already_averaged"});
}

}  // namespace
}  // namespace zerosched::testing
