#include "synchronized_batch_norm.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace {

/// What SumOverRanks keeps for its backward.
struct Kept : torch::CustomClassHolder {
  explicit Kept(std::shared_ptr<zerosched::Communicator> over) : communicator(std::move(over)) {}
  std::shared_ptr<zerosched::Communicator> communicator;
};

/// The sum over ranks. Its gradient is the sum over ranks, too: what a rank adds reaches every rank's loss.
struct SumOverRanks : torch::autograd::Function<SumOverRanks> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& part,
      const std::shared_ptr<zerosched::Communicator>& communicator) {
    context->saved_data["kept"] = c10::IValue::make_capsule(c10::make_intrusive<Kept>(communicator));
    return summed(part, *communicator);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, const torch::autograd::variable_list& gradients) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(context->saved_data["kept"].toCapsule());
    return {summed(gradients[0], *kept->communicator), torch::Tensor()};
  }

  static torch::Tensor summed(const torch::Tensor& part, zerosched::Communicator& communicator) {
    auto total = part.contiguous().clone();
    communicator.all_reduce(total)->wait();
    return total;
  }
};

}  // namespace

torch::Tensor SynchronizedBatchNorm2dImpl::forward(const torch::Tensor& input) {
  if (!is_training() || communicator_->size() == 1) return BatchNorm2dImpl::forward(input);
  const int64_t channels = input.size(1);
  const int64_t per_channel = input.numel() / channels * communicator_->size();
  const auto count = static_cast<double>(per_channel);
  // float64, because the variance is the difference of two sums.
  const auto sums = SumOverRanks::apply(torch::cat({input.sum({0, 2, 3}, false, torch::kDouble),
                                            input.square().sum({0, 2, 3}, false, torch::kDouble)}),
      communicator_);
  const auto mean = sums.narrow(0, 0, channels) / count;
  const auto variance = sums.narrow(0, channels, channels) / count - mean.square();
  update_running_statistics(mean.detach(), variance.detach() * (count / (count - 1)));
  const auto scale = weight / (variance + options.eps()).sqrt();
  const auto shift = bias - mean * scale;
  const auto by_channel = [&](const torch::Tensor& values) {
    return values.to(input.scalar_type()).view({1, channels, 1, 1});
  };
  return input * by_channel(scale) + by_channel(shift);
}

void SynchronizedBatchNorm2dImpl::update_running_statistics(
    const torch::Tensor& mean, const torch::Tensor& unbiased_variance) {
  const torch::NoGradGuard no_grad;
  num_batches_tracked += 1;
  // Without a momentum the plain average over batches, which is what zerosched::update_batch_norm asks for.
  const double weight = options.momentum().value_or(1 / num_batches_tracked.item<double>());
  running_mean.lerp_(mean.to(running_mean.scalar_type()), weight);
  running_var.lerp_(unbiased_variance.to(running_var.scalar_type()), weight);
}
