#include <zerosched/update_batch_norm.h>

#include "comm/agree.h"
#include "comm/message_of.h"

#include <ATen/ATen.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/instancenorm.h>

#include <optional>
#include <utility>
#include <vector>

namespace zerosched::detail {

namespace {

/// What the layers with running statistics, which share no base class, have in common.
struct Layer {
  std::string name;
  torch::nn::Module* module;
  at::Tensor mean, var, batch_count;

  bool training_before;
  at::Tensor mean_before, var_before, batch_count_before;
};

/// BatchNorm counts its batches, and averages over them by itself where it has no momentum.
struct BatchNormLayer : Layer {
  std::optional<double>* momentum;
  std::optional<double> momentum_before;

  at::Tensor count() const { return batch_count.to(at::kCPU, at::kDouble).reshape({1}); }
};

/// InstanceNorm has a momentum always, and LibTorch counts no batches of it. With a momentum of 1 it holds the last
/// batch's statistics, which are summed up here.
struct InstanceNormLayer : Layer {
  double* momentum;
  double momentum_before;
  at::Tensor mean_sum, var_sum;
  int64_t count = 0;
  uint32_t version;  ///< of `mean` when it was last added

  void add_batch() {
    if (mean._version() == version) return;  // this batch did not reach it
    version = mean._version();
    mean_sum += mean.to(at::kCPU, at::kDouble);
    var_sum += var.to(at::kCPU, at::kDouble);
    ++count;
  }
};

template <typename Norm>
Layer layer_of(const std::string& name, Norm& norm) {
  return {name, &norm, norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.is_training(),
      norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()};
}

template <typename BatchNorm>
bool add_if(std::vector<BatchNormLayer>& layers, const std::string& name, torch::nn::Module& module) {
  auto* norm = dynamic_cast<BatchNorm*>(&module);
  if (norm == nullptr) return false;
  if (!norm->running_mean.defined()) return true;  // track_running_stats(false)
  layers.push_back({layer_of(name, *norm), &norm->options.momentum(), norm->options.momentum()});
  return true;
}

template <typename InstanceNorm>
bool add_if(std::vector<InstanceNormLayer>& layers, const std::string& name, torch::nn::Module& module) {
  auto* norm = dynamic_cast<InstanceNorm*>(&module);
  if (norm == nullptr) return false;
  if (!norm->running_mean.defined()) return true;  // track_running_stats(false)
  const at::Tensor zeros = at::zeros({norm->running_mean.numel()}, at::kDouble);
  layers.push_back({layer_of(name, *norm), &norm->options.momentum(), norm->options.momentum(), zeros,
      zeros.clone(), 0, 0});
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
    for (BatchNormLayer& layer : batch_norms_) {
      begin(layer);
      layer.batch_count.zero_();
      *layer.momentum = std::nullopt;  // a plain average over batches
    }
    for (InstanceNormLayer& layer : instance_norms_) {
      begin(layer);
      *layer.momentum = 1;
      layer.version = layer.mean._version();
    }
  }

  ~Impl() {
    const at::NoGradGuard no_grad;
    for (BatchNormLayer& layer : batch_norms_) {
      *layer.momentum = layer.momentum_before;
      end(layer);
    }
    for (InstanceNormLayer& layer : instance_norms_) {
      *layer.momentum = layer.momentum_before;
      end(layer);
    }
  }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void add_batch() {
    for (InstanceNormLayer& layer : instance_norms_) layer.add_batch();
  }

  void finish(Communicator& communicator, const std::string& local_error) {
    agree(communicator, local_error);
    const at::NoGradGuard no_grad;
    // Sums over batches, so that ranks with more of them weigh more: per layer the mean, the variance, the
    // count.
    std::vector<at::Tensor> parts;
    for (const BatchNormLayer& layer : batch_norms_) {
      const at::Tensor count = layer.count();
      parts.push_back(layer.mean.to(at::kCPU, at::kDouble) * count);
      parts.push_back(layer.var.to(at::kCPU, at::kDouble) * count);
      parts.push_back(count);
    }
    for (const InstanceNormLayer& layer : instance_norms_) {
      parts.push_back(layer.mean_sum);
      parts.push_back(layer.var_sum);
      parts.push_back(at::full({1}, layer.count, at::kDouble));
    }
    if (parts.empty()) {
      finished_ = true;
      return;
    }
    const at::Tensor sums = at::cat(parts);
    communicator.all_reduce(sums, ReduceOp::sum, {"batch norm statistics"})->wait();
    int64_t at = 0;
    const auto next = [&](int64_t numel) { return sums.narrow(0, std::exchange(at, at + numel), numel); };
    // Returns the number of batches.
    const auto take_average = [&](const Layer& layer) {
      const at::Tensor mean = next(layer.mean.numel());
      const at::Tensor var = next(layer.var.numel());
      const auto count = next(1).item<double>();
      TORCH_CHECK(count > 0, "update_batch_norm: no rank's loader gave layer '", layer.name,
          "' a batch, so it has no statistics; pass a loader that is not empty.");
      layer.mean.copy_(mean / count);
      layer.var.copy_(var / count);
      return static_cast<int64_t>(count);
    };
    for (const BatchNormLayer& layer : batch_norms_) layer.batch_count.fill_(take_average(layer));
    for (const InstanceNormLayer& layer : instance_norms_) take_average(layer);
    finished_ = true;
  }

 private:
  void add(const std::string& name, torch::nn::Module& module) {
    using namespace torch::nn;
    static_cast<void>(add_if<BatchNorm1dImpl>(batch_norms_, name, module) ||
                      add_if<BatchNorm2dImpl>(batch_norms_, name, module) ||
                      add_if<BatchNorm3dImpl>(batch_norms_, name, module) ||
                      add_if<InstanceNorm1dImpl>(instance_norms_, name, module) ||
                      add_if<InstanceNorm2dImpl>(instance_norms_, name, module) ||
                      add_if<InstanceNorm3dImpl>(instance_norms_, name, module));
  }

  static void begin(Layer& layer) {
    layer.mean.zero_();
    layer.var.zero_();
    layer.module->train();
  }

  void end(Layer& layer) const {
    layer.module->train(layer.training_before);
    if (finished_) return;
    layer.mean.copy_(layer.mean_before);
    layer.var.copy_(layer.var_before);
    layer.batch_count.copy_(layer.batch_count_before);
  }

  std::vector<BatchNormLayer> batch_norms_;
  std::vector<InstanceNormLayer> instance_norms_;
  bool finished_ = false;
};

BatchNormPass::BatchNormPass(torch::nn::Module& module) : impl_(std::make_unique<Impl>(module)) {}
BatchNormPass::~BatchNormPass() = default;

void BatchNormPass::add_batch() { impl_->add_batch(); }

void BatchNormPass::finish(Communicator& communicator, const std::string& local_error) {
  impl_->finish(communicator, local_error);
}

std::string BatchNormPass::message_of(const std::exception& exception) {
  return detail::message_of(exception);
}

}  // namespace zerosched::detail
