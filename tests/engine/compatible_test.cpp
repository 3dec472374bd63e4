// overlap_backward(false): what works with a plain optimizer works the same.
#include "engine/toy.h"
#include "support/world.h"

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

std::pair<State, State> train_sharded(const std::shared_ptr<Communicator>& communicator, at::ScalarType dtype) {
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

TEST(Compatible, AGanTrainsToTheSameBitsOnEveryPowerOfTwo) {
  const int size = world()->size();
  if ((size & (size - 1)) != 0) return;  // sums of three equal terms round
  const auto alone = train_sharded(self_communicator(), at::kFloat);
  const auto sharded = train_sharded(world(), at::kFloat);
  expect_same_bits(sharded.first, alone.first);
  expect_same_bits(sharded.second, alone.second);
}

TEST(Compatible, GradientsStayWithTheUser) {
  const NamedParameters parameters = make_parameters({{10}, {20}});
  Reference reference(parameters);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, ShardingOptions().overlap_backward(false));
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
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, ShardingOptions().overlap_backward(false));
  backward(parameters, random_gradients(parameters, 0, world()->rank()));
  if (world()->rank() == 0) optimizer.zero_grad();
  optimizer.step();
  reference.step(mean_gradients(size, [&](int rank) {
    return rank == 0 ? Gradients() : random_gradients(parameters, 0, rank);
  }));
  expect_close(full_state(optimizer), reference);
}

}  // namespace
}  // namespace zerosched::testing
