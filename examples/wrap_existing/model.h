#pragma once

#include <torch/nn.h>

/// A small convolutional network: [n, 1, 28, 28] -> [n, 10] logits.
class NetImpl : public torch::nn::Module {
 public:
  NetImpl()
      : conv1(register_module("conv1", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 16, 3).padding(1)))),
        conv2(register_module("conv2", torch::nn::Conv2d(torch::nn::Conv2dOptions(16, 32, 3).padding(1)))),
        fc1(register_module("fc1", torch::nn::Linear(32 * 7 * 7, 128))),
        fc2(register_module("fc2", torch::nn::Linear(128, 10))) {}

  torch::Tensor forward(torch::Tensor x) {
    x = torch::max_pool2d(conv1(x).relu(), 2);
    x = torch::max_pool2d(conv2(x).relu(), 2);
    return fc2(fc1(x.flatten(1)).relu());
  }

 private:
  torch::nn::Conv2d conv1, conv2;
  torch::nn::Linear fc1, fc2;
};
TORCH_MODULE(Net);
