// A trainer outside zerosched's tree, as a user would write it: fits a line on all ranks and says how it
// went.

#include <zerosched/zerosched.h>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/utils.h>

#include <iostream>

int main(int argc, char** argv) {
  zerosched::Session session(argc, argv);
  torch::manual_seed(7);
  torch::nn::Linear model(4, 1);
  zerosched::AdamWScheduleFree optimizer(
      *model, session.communicator(), zerosched::AdamWScheduleFreeOptions(0.05).warmup_steps(5));

  const auto loss = [&] {
    const auto inputs = torch::randn({16, 4});
    return torch::nn::functional::mse_loss(model->forward(inputs), inputs.sum(1, true));
  };
  torch::manual_seed(100 + static_cast<uint64_t>(session.rank()));
  const double before = loss().item<double>();
  for (int step = 0; step < 200; ++step) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  }
  const auto evaluation = optimizer.eval_scope();
  const double after = loss().item<double>();
  if (session.rank() == 0) {
    std::cout << "ranks " << session.world_size() << " standard " << __cplusplus << " backend "
              << session.communicator()->backend() << " loss " << before << " to " << after << std::endl;
  }
  return after < 0.1 * before ? 0 : 1;
}
