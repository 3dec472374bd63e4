// overlap_backward(false): what works with a plain optimizer works the same.
#include "engine/toy.h"
#include "kernels/kernels.h"
#include "support/world.h"

#include <array>
#include <cmath>

namespace zerosched::testing {
namespace {

struct Network {
  NamedParameters parameters;
  at::Tensor forward(const at::Tensor& input) const {
    const at::Tensor hidden = at::tanh(at::addmm(parameters[1].second, input, parameters[0].second));
    return at::addmm(parameters[3].second, hidden, parameters[2].second);
  }
};

Network network(int64_t in, int64_t hidden, int64_t out, at::ScalarType dtype) {
  return {make_parameters({{in, hidden}, {hidden}, {hidden, out}, {out}}, dtype)};
}

at::Tensor random_input(int64_t step, int64_t which, at::ScalarType dtype) {
  return random_like(at::empty({8, 3}, dtype), step, which, 77);
}

/// What the plain side of a comparison needs of an optimizer.
struct Steps {
  std::function<void()> zero_grad, step;
};

// The usual pair: the discriminator takes two backward passes a step, and the generator's loss, taken through
// the discriminator, leaves gradients in it that its own zero_grad() drops later.
void train_gan(const Network& generator, const Network& discriminator, const Steps& of_generator,
    const Steps& of_discriminator, at::ScalarType dtype) {
  for (int64_t step = 0; step < 6; ++step) {
    const at::Tensor fake = generator.forward(random_input(step, 0, dtype));
    of_discriminator.zero_grad();
    at::softplus(-discriminator.forward(random_input(step, 1, dtype))).mean().backward();
    at::softplus(discriminator.forward(fake.detach())).mean().backward();
    of_discriminator.step();
    of_generator.zero_grad();
    at::softplus(-discriminator.forward(fake)).mean().backward();
    of_generator.step();
  }
}

Steps steps_of(AdamWScheduleFree& optimizer) {
  return {[&] { optimizer.zero_grad(); }, [&] { optimizer.step(); }};
}

std::pair<State, State> train_sharded(
    const std::shared_ptr<Communicator>& communicator, at::ScalarType dtype) {
  const Network generator = network(3, 9, 3, dtype);
  const Network discriminator = network(3, 7, 1, dtype);
  const ShardingOptions sharding = buckets_of(100).overlap_backward(false);
  AdamWScheduleFree of_generator({ParameterGroup(generator.parameters)}, communicator, {}, sharding);
  AdamWScheduleFree of_discriminator({ParameterGroup(discriminator.parameters)}, communicator, {}, sharding);
  train_gan(generator, discriminator, steps_of(of_generator), steps_of(of_discriminator), dtype);
  return {full_state(of_generator), full_state(of_discriminator)};
}

// The reference keeps y in double and writes it into ordinary parameters.
Steps plain_steps(const Network& network, Reference& reference) {
  return {[&network] {
            for (const auto& named : network.parameters) named.second.mutable_grad().reset();
          },
      [&network, &reference] {
        const at::NoGradGuard no_grad;
        Gradients gradients;
        for (const auto& [name, parameter] : network.parameters) gradients[name] = parameter.grad().clone();
        reference.step(gradients);
        for (const auto& [name, parameter] : network.parameters) {
          at::Tensor(parameter).detach().copy_(reference.y(name));
        }
      }};
}

TEST(Compatible, AGanTrainsAsWithTwoPlainOptimizers) {
  const Network generator = network(3, 9, 3, at::kDouble);
  const Network discriminator = network(3, 7, 1, at::kDouble);
  Reference of_generator(generator.parameters), of_discriminator(discriminator.parameters);
  train_gan(generator, discriminator, plain_steps(generator, of_generator),
      plain_steps(discriminator, of_discriminator), at::kDouble);
  const auto sharded = train_sharded(world(), at::kDouble);
  expect_close(sharded.first, of_generator, 1e-10);
  expect_close(sharded.second, of_discriminator, 1e-10);
}

/// Schedule-Free AdamW of whole tensors: the library's arithmetic of one element, and nothing else of it.
class PlainOptimizer {
 public:
  explicit PlainOptimizer(const NamedParameters& parameters) : parameters_(parameters) {
    for (const auto& named : parameters) {
      const at::Tensor start = named.second.detach().clone();
      state_.push_back({start.clone(), start.clone(), at::zeros_like(start)});
    }
  }

  void zero_grad() {
    for (const auto& named : parameters_) named.second.mutable_grad().reset();
  }

  void step() {
    const at::NoGradGuard no_grad;
    const AdamWScheduleFreeOptions options;
    const auto [beta1, beta2] = options.betas();
    kernels::StepScalars scalars;
    scalars.lr = options.lr();
    scalars.beta2 = beta2;
    scalars.bias_correction2 = 1 - std::pow(beta2, ++steps_);
    scalars.eps = options.eps();
    const double weight = options.lr() * options.lr();
    weight_sum_ += weight;
    scalars.c = weight / weight_sum_;
    scalars.y_weight_before = steps_ == 1 ? 0 : 1 - beta1;
    scalars.y_weight = 1 - beta1;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      at::Tensor y = parameters_[i].second.detach();
      const at::Tensor gradient = parameters_[i].second.grad().contiguous();
      kernels::UpdateRange range{
          y.scalar_type(), y.scalar_type(), y.data_ptr(), gradient.const_data_ptr(), {}, y.numel()};
      for (size_t s = 0; s < 3; ++s) range.state[s] = state_[i][s].data_ptr();
      kernels::update(kernels::Rule::adamw_schedule_free, range, scalars);
    }
  }

  State state() const {
    State result;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      const auto& [name, parameter] = parameters_[i];
      result["y"][name] = parameter.detach();
      for (const auto& [which, s] : {std::pair("z", 0), std::pair("x", 1), std::pair("v", 2)}) {
        result[which][name] = state_[i][static_cast<size_t>(s)];
      }
    }
    return result;
  }

 private:
  NamedParameters parameters_;
  std::vector<std::array<at::Tensor, 3>> state_;
  double steps_ = 0;
  double weight_sum_ = 0;
};

TEST(Compatible, AGanTrainsToTheBitsOfTwoPlainOptimizers) {
  const int size = world()->size();
  if ((size & (size - 1)) != 0) return;  // sums of three equal terms round
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const Network generator = network(3, 9, 3, dtype);
    const Network discriminator = network(3, 7, 1, dtype);
    PlainOptimizer of_generator(generator.parameters), of_discriminator(discriminator.parameters);
    train_gan(generator, discriminator, {[&] { of_generator.zero_grad(); }, [&] { of_generator.step(); }},
        {[&] { of_discriminator.zero_grad(); }, [&] { of_discriminator.step(); }}, dtype);
    const auto sharded = train_sharded(world(), dtype);
    expect_same_bits(sharded.first, of_generator.state());
    expect_same_bits(sharded.second, of_discriminator.state());
  }
}

TEST(Compatible, GradientsStayWithTheUser) {
  const NamedParameters parameters = make_parameters({{10}, {20}});
  Reference reference(parameters);
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), {}, ShardingOptions().overlap_backward(false));
  torch::optim::Optimizer& plain = optimizer;
  Gradients sum = random_gradients(parameters, 0, 0);
  backward(parameters, sum);
  optimizer.step();
  reference.step(sum);
  for (const auto& [name, parameter] : parameters) EXPECT_TRUE(same_bits(parameter.grad(), sum.at(name)));
  // Not zeroed: the next backward adds to it.
  const Gradients more = random_gradients(parameters, 1, 0);
  backward(parameters, more);
  for (auto& [name, gradient] : sum) gradient = gradient + more.at(name);
  optimizer.step();
  reference.step(sum);
  optimizer.zero_grad(/*set_to_none=*/false);
  for (const auto& named : parameters) EXPECT_TRUE(named.second.grad().eq(0).all().item<bool>());
  backward(parameters, random_gradients(parameters, 2, 0));
  plain.zero_grad();
  for (const auto& named : parameters) EXPECT_FALSE(named.second.grad().defined());
  backward(parameters, random_gradients(parameters, 3, 0));
  optimizer.step();
  reference.step(random_gradients(parameters, 3, 0));
  expect_close(full_state(optimizer), reference);
}

TEST(Compatible, ZeroGradOfOneRankAloneIsLocal) {
  const NamedParameters parameters = make_parameters({{10}, {20}});
  Reference reference(parameters);
  const int size = world()->size();
  AdamWScheduleFree optimizer(
      {ParameterGroup(parameters)}, world(), {}, ShardingOptions().overlap_backward(false));
  backward(parameters, random_gradients(parameters, 0, world()->rank()));
  if (world()->rank() == 0) optimizer.zero_grad();
  optimizer.step();
  reference.step(mean_gradients(
      size, [&](int rank) { return rank == 0 ? Gradients() : random_gradients(parameters, 0, rank); }));
  expect_close(full_state(optimizer), reference);
}

}  // namespace
}  // namespace zerosched::testing
