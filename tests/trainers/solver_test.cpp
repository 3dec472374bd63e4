// A solver that knows LibTorch only: it holds a torch::optim::Optimizer*, trains a TorchScript module, sums the gradients
// of several backward passes, clips with torch::nn::utils::clip_grad_norm_ and copies its target network by hand. Ranks
// have simulations of their own. What zerosched cannot make right behind its back, the solver must be told at once.
#include "engine/toy.h"
#include "support/world.h"
#include "trainers/plain.h"

#include <zerosched/zerosched.h>

#include <torch/nn/utils/clip_grad.h>
#include <torch/script.h>

namespace zerosched::testing {
namespace {

constexpr double kLr = 0.01;
constexpr double kMaxNorm = 0.05;  // every step is clipped
constexpr int64_t kSteps = 30;
constexpr int64_t kPasses = 3;  // backward passes per step

/// The value of a state of four numbers.
torch::jit::Module make_network() {
  torch::jit::Module network("Value");
  const auto parameters = make_parameters({{4, 16}, {16}, {16, 1}, {1}}, at::kDouble);
  for (const auto& [name, value] : parameters)
    network.register_parameter(name, (value.detach() * 0.3).requires_grad_(), false);
  network.define("def forward(self, x):\n  return torch.tanh(x @ self.p0 + self.p1) @ self.p2 + self.p3\n");
  return network;
}

NamedParameters parameters_of(const torch::jit::Module& network) {
  NamedParameters parameters;
  for (const auto& parameter : network.named_parameters())
    parameters.emplace_back(parameter.name, parameter.value);
  return parameters;
}

struct Transitions {
  at::Tensor now, reward, next;  ///< [n, 4], [n, 1], [n, 4]
};

/// Those of one pass of the ranks in [begin, end), one rank's after the other's.
Transitions transitions(int64_t step, int64_t pass, int64_t begin, int64_t end) {
  std::vector<at::Tensor> states;
  for (int64_t rank = begin; rank < end; ++rank) {
    states.push_back(
        (1.0 + static_cast<double>(rank)) * random_like(at::empty({8, 4}, at::kDouble), step, rank, pass));
  }
  const at::Tensor now = at::cat(states);
  return {now, now.square().sum(1, true), 0.5 * now};
}

/// As it was before there were ranks, but for what is done to gradients between backward and step.
class Solver {
 public:
  Solver(torch::jit::Module network, torch::optim::Optimizer* optimizer)
      : network_(std::move(network)), target_(network_.deepcopy()), optimizer_(optimizer) {}

  void train(int64_t begin, int64_t end, const std::function<void()>& finish_gradients) {
    for (int64_t step = 0; step < kSteps; ++step) {
      optimizer_->zero_grad();
      for (int64_t pass = 0; pass < kPasses; ++pass) {
        const auto [now, reward, next] = transitions(step, pass, begin, end);
        const at::Tensor wanted = reward + 0.9 * target_.forward({next}).toTensor().detach();
        const at::Tensor error = network_.forward({now}).toTensor() - wanted;
        (error.square().mean() / kPasses).backward();
      }
      finish_gradients();
      optimizer_->step();
      if (step % 4 == 3) follow();
    }
  }

  void clip() const {
    std::vector<at::Tensor> parameters;
    for (const auto& parameter : network_.parameters()) parameters.push_back(parameter);
    torch::nn::utils::clip_grad_norm_(parameters, kMaxNorm);
  }

  std::vector<at::Tensor> target() const {
    std::vector<at::Tensor> values;
    for (const auto& parameter : target_.parameters()) values.push_back(parameter.detach());
    return values;
  }

 private:
  void follow() {
    auto of_target = target_.parameters().begin();
    for (const auto& parameter : network_.parameters()) {
      (*of_target).data().copy_(parameter);
      ++of_target;
    }
  }

  torch::jit::Module network_, target_;
  torch::optim::Optimizer* optimizer_;
};

/// What one process gets that has the simulations of all ranks.
struct Expected {
  Expected() : network(make_network()), optimizer(parameters_of(network), kLr), solver(network, &optimizer) {
    solver.train(0, world()->size(), [&] { solver.clip(); });
  }
  torch::jit::Module network;
  PlainScheduleFree optimizer;
  Solver solver;
};

struct Trained {
  explicit Trained(const ShardingOptions& sharding)
      : network(make_network()),
        optimizer(network, world(), AdamWScheduleFreeOptions(kLr), sharding),
        solver(network, &optimizer) {}
  void train(const std::function<void()>& finish_gradients) {
    solver.train(world()->rank(), world()->rank() + 1, finish_gradients);
  }
  void expect(const Expected& expected) {
    expect_close(full_state(optimizer), expected.optimizer.reference(), 1e-9);
    const auto values = solver.target(), expected_values = expected.solver.target();
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_TRUE(at::allclose(values[i], expected_values[i], 1e-9, 1e-12));
  }
  torch::jit::Module network;
  AdamWScheduleFree optimizer;
  Solver solver;
};

ShardingOptions without_hooks() { return buckets_of(200).overlap_backward(false); }

TEST(Solver, IsRightWithTheClipOfZerosched) {
  Trained trained(without_hooks());
  trained.train([&] { clip_grad_norm_(trained.optimizer, kMaxNorm); });
  trained.expect(Expected());
}

// Its own all-reduce comes before its own clip, so that every rank clips the average.
TEST(Solver, IsRightIfItAveragesItself) {
  Trained trained(buckets_of(200).gradients(GradientInput::already_averaged));
  const auto communicator = world();
  trained.train([&] {
    for (const auto& parameter : trained.network.parameters()) {
      communicator->all_reduce(parameter.grad().view(-1))->wait();
      parameter.mutable_grad() /= communicator->size();
    }
    trained.solver.clip();
  });
  trained.expect(Expected());
}

// With one rank its own gradient is the average. With more every rank would clip by the norm of its own.
TEST(Solver, IsRightOrToldWithTheClipOfLibTorch) {
  Trained trained(without_hooks());
  const auto train = [&] { trained.train([&] { trained.solver.clip(); }); };
  if (world()->size() == 1) {
    train();
    trained.expect(Expected());
  } else {
    expect_error(train, {"zerosched::clip_grad_norm_"});
  }
}

// The first backward pass hands the gradients to the buckets, so the second one cannot add to them.
TEST(Solver, IsToldAtTheSecondBackwardPassWithHooks) {
  Trained trained(buckets_of(200));
  expect_error(
      [&] { trained.train([&] { trained.solver.clip(); }); }, {"no_sync()", "overlap_backward(false)"});
}

}  // namespace
}  // namespace zerosched::testing
