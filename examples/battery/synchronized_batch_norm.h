#pragma once

#include <torch/nn.h>
#include <zerosched/communicator.h>

#include <memory>
#include <utility>

/// BatchNorm2d over the batches of all ranks: every rank normalises its part of the batch by the statistics of the whole
/// one, so that training does not depend on how many ranks there are. Every rank's part must be of the same size, and
/// forward() in training mode, and its backward, are collective.
///
/// Without it each rank normalises by its own part, which is as good where parts are large.
class SynchronizedBatchNorm2dImpl : public torch::nn::BatchNorm2dImpl {
 public:
  SynchronizedBatchNorm2dImpl(int64_t channels, std::shared_ptr<zerosched::Communicator> communicator)
      : BatchNorm2dImpl(channels), communicator_(std::move(communicator)) {}

  /// [n, channels, height, width] -> the same shape.
  torch::Tensor forward(const torch::Tensor& input);

 private:
  void update_running_statistics(const torch::Tensor& mean, const torch::Tensor& unbiased_variance);

  std::shared_ptr<zerosched::Communicator> communicator_;
};
TORCH_MODULE(SynchronizedBatchNorm2d);
