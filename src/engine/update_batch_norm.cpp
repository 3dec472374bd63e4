#include <zerosched/update_batch_norm.h>

#include "comm/agree.h"
#include "comm/message_of.h"

#include <ATen/ATen.h>
#include <torch/nn/modules/batchnorm.h>

#include <optional>
#include <utility>
#include <vector>

namespace zerosched::detail {

namespace {

/// What BatchNorm1d, 2d and 3d, which share no base class, have in common.
struct Layer {
  std::string name;
  torch::nn::Module* module;
  std::optional<double>* momentum;
  at::Tensor mean, var, batch_count;

  std::optional<double> momentum_before;
  bool training_before;
  at::Tensor mean_before, var_before, batch_count_before;
};

template <typename BatchNorm>
bool add_if(std::vector<Layer>& layers, const std::string& name, torch::nn::Module& module) {
  auto* layer = dynamic_cast<BatchNorm*>(&module);
  if (layer == nullptr) return false;
  if (!layer->running_mean.defined()) return true;  // track_running_stats(false)
  layers.push_back({name, layer, &layer->options.momentum(), layer->running_mean, layer->running_var,
      layer->num_batches_tracked, layer->options.momentum(), layer->is_training(),
      layer->running_mean.clone(), layer->running_var.clone(), layer->num_batches_tracked.clone()});
  return true;
}

}  // namespace

class BatchNormPass::Impl {
 public:
  explicit Impl(torch::nn::Module& root) {
    const at::NoGradGuard no_grad;
    // Apart from its submodules, because named_modules() takes only a root that a shared_ptr owns.
    add(root.name(), root);
    for (const auto& named : root.named_modules({}, /*include_self=*/false)) add(named.key(), *named.value());
    for (Layer& layer : layers_) {
      layer.mean.zero_();
      layer.var.zero_();
      layer.batch_count.zero_();
      *layer.momentum = std::nullopt;  // a plain average over batches
      layer.module->train();
    }
  }

  ~Impl() {
    const at::NoGradGuard no_grad;
    for (Layer& layer : layers_) {
      *layer.momentum = layer.momentum_before;
      layer.module->train(layer.training_before);
      if (finished_) continue;
      layer.mean.copy_(layer.mean_before);
      layer.var.copy_(layer.var_before);
      layer.batch_count.copy_(layer.batch_count_before);
    }
  }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void finish(Communicator& communicator, const std::string& local_error) {
    agree(communicator, local_error);
    const at::NoGradGuard no_grad;
    // Sums over batches, so that ranks with more of them weigh more: per layer the mean, the variance, the
    // count.
    std::vector<at::Tensor> parts;
    for (const Layer& layer : layers_) {
      const at::Tensor count = layer.batch_count.to(at::kCPU, at::kDouble).reshape({1});
      parts.push_back(layer.mean.to(at::kCPU, at::kDouble) * count);
      parts.push_back(layer.var.to(at::kCPU, at::kDouble) * count);
      parts.push_back(count);
    }
    if (parts.empty()) {
      finished_ = true;
      return;
    }
    const at::Tensor sums = at::cat(parts);
    communicator.all_reduce(sums, ReduceOp::sum, {"batch norm statistics"})->wait();
    int64_t at = 0;
    const auto next = [&](int64_t numel) { return sums.narrow(0, std::exchange(at, at + numel), numel); };
    for (const Layer& layer : layers_) {
      const at::Tensor mean = next(layer.mean.numel());
      const at::Tensor var = next(layer.var.numel());
      const at::Tensor count = next(1);
      TORCH_CHECK(count.item<double>() > 0, "update_batch_norm: no rank's loader gave layer '", layer.name,
          "' a batch, so it has no statistics; pass a loader that is not empty.");
      layer.mean.copy_(mean / count);
      layer.var.copy_(var / count);
      layer.batch_count.fill_(static_cast<int64_t>(count.item<double>()));
    }
    finished_ = true;
  }

 private:
  void add(const std::string& name, torch::nn::Module& module) {
    static_cast<void>(add_if<torch::nn::BatchNorm1dImpl>(layers_, name, module) ||
                      add_if<torch::nn::BatchNorm2dImpl>(layers_, name, module) ||
                      add_if<torch::nn::BatchNorm3dImpl>(layers_, name, module));
  }

  std::vector<Layer> layers_;
  bool finished_ = false;
};

BatchNormPass::BatchNormPass(torch::nn::Module& module) : impl_(std::make_unique<Impl>(module)) {}
BatchNormPass::~BatchNormPass() = default;

void BatchNormPass::finish(Communicator& communicator, const std::string& local_error) {
  impl_->finish(communicator, local_error);
}

std::string BatchNormPass::message_of(const std::exception& exception) {
  return detail::message_of(exception);
}

}  // namespace zerosched::detail
