#include <zerosched/zerosched.h>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/utils.h>

#include <iostream>

// Learns which of eight numbers is the largest. Start it with launch/run -n 2, mpirun, srun, or alone.
int main(int argc, char** argv) {
  zerosched::Session session(argc, argv);  // joins mpirun or Slurm; alone it is a world of one
  torch::manual_seed(static_cast<uint64_t>(session.rank()));  // every rank has data of its own

  torch::nn::Sequential model(torch::nn::Linear(8, 64), torch::nn::ReLU(), torch::nn::Linear(64, 8));
  model->to(session.device());
  zerosched::AdamWScheduleFree optimizer(*model, session.communicator(),
      zerosched::AdamWScheduleFreeOptions(1e-2).weight_decay(0.01).warmup_steps(20),
      zerosched::ShardingOptions().max_grad_norm(1.0));

  for (int step = 0; step < 500; ++step) {
    const auto data = torch::randn({32, 8}, session.device());
    optimizer.zero_grad();
    torch::nn::functional::cross_entropy(model->forward(data), data.argmax(1))
        .backward();  // gradients are reduced meanwhile
    optimizer.step();
  }

  {
    const auto evaluation = optimizer.eval_scope();  // the module holds x; y is back, bit for bit, after it
    const torch::NoGradGuard no_grad;
    const auto data = torch::randn({2000, 8}, session.device());
    const auto right = model->forward(data).argmax(1) == data.argmax(1);
    if (session.rank() == 0)
      std::cout << "accuracy " << right.to(torch::kFloat).mean().item<double>() << std::endl;
  }
  optimizer.save_checkpoint("run/step_00500");                        // loads at any world size
  zerosched::export_safetensors(optimizer, "run/model.safetensors");  // x, under the model's parameter names
}
