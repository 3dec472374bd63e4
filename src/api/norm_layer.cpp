#include "api/norm_layer.h"

#include <ATen/ATen.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/instancenorm.h>

#include <optional>
#include <set>
#include <utility>

namespace zerosched::detail {

RunningStatistics::RunningStatistics(at::Tensor mean, at::Tensor var, at::Tensor batch_count)
    : mean(std::move(mean)),
      var(std::move(var)),
      batch_count(std::move(batch_count)),
      mean_before_(this->mean.clone()),
      var_before_(this->var.clone()),
      batch_count_before_(this->batch_count.clone()) {}

void RunningStatistics::zero() const {
  mean.zero_();
  var.zero_();
}

void RunningStatistics::replace(const at::Tensor& new_mean, const at::Tensor& new_var) const {
  mean.copy_(new_mean);
  var.copy_(new_var);
}

void RunningStatistics::restore() const {
  mean.copy_(mean_before_);
  var.copy_(var_before_);
  batch_count.copy_(batch_count_before_);
}

namespace {

at::Tensor to_double(const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); }

/// What the layers of torch::nn, which share no base class, have in common.
template <typename Norm>
class EagerLayer : public NormLayer {
 public:
  EagerLayer(const std::string& name, Norm& norm)
      : NormLayer(name),
        norm_(norm),
        statistics_(norm.running_mean, norm.running_var, norm.num_batches_tracked),
        momentum_before_(norm.options.momentum()),
        training_before_(norm.is_training()) {
    statistics_.zero();
    norm.train();
  }

  ~EagerLayer() override {
    const at::NoGradGuard no_grad;
    norm_.options.momentum(momentum_before_);
    norm_.train(training_before_);
    if (!kept_) statistics_.restore();
  }

  void keep() final { kept_ = true; }

 protected:
  Norm& norm_;
  const RunningStatistics statistics_;

 private:
  std::decay_t<decltype(std::declval<Norm&>().options.momentum())> momentum_before_;
  bool training_before_;
  bool kept_ = false;
};

/// Counts its batches, and averages over them by itself where it has no momentum.
template <typename Norm>
class BatchNormLayer final : public EagerLayer<Norm> {
 public:
  BatchNormLayer(const std::string& name, Norm& norm) : EagerLayer<Norm>(name, norm) {
    norm.options.momentum(std::nullopt);
    this->statistics_.batch_count.zero_();
  }

  void add_batch() override {}

  NormSums sums() const override {
    const auto batches = this->statistics_.batch_count.template item<int64_t>();
    return {to_double(this->statistics_.mean) * batches, to_double(this->statistics_.var) * batches, batches,
        batches};
  }

  void replace(const at::Tensor& mean, const at::Tensor& var, int64_t counted) override {
    this->statistics_.replace(mean, var);
    this->statistics_.batch_count.fill_(counted);
  }
};

/// Has a momentum always, and LibTorch counts no batches of it. With a momentum of 1 it holds the last batch's
/// statistics, which are summed up here.
template <typename Norm>
class InstanceNormLayer final : public EagerLayer<Norm> {
 public:
  InstanceNormLayer(const std::string& name, Norm& norm) : EagerLayer<Norm>(name, norm) {
    norm.options.momentum(1);
    version_ = norm.running_mean._version();
    sums_ = {at::zeros({norm.running_mean.numel()}, at::kDouble),
        at::zeros({norm.running_var.numel()}, at::kDouble)};
  }

  void add_batch() override {
    const auto version = static_cast<int64_t>(this->norm_.running_mean._version());
    if (version == version_) return;  // this batch did not reach it
    version_ = version;
    sums_.mean += to_double(this->statistics_.mean);
    sums_.var += to_double(this->statistics_.var);
    ++sums_.batches;
  }

  NormSums sums() const override { return sums_; }

  void replace(const at::Tensor& mean, const at::Tensor& var, int64_t) override {
    this->statistics_.replace(mean, var);
  }

 private:
  int64_t version_ = 0;  ///< of the running mean when it was last added
  NormSums sums_;
};

template <template <typename> class Layer, typename Norm>
bool add_if(NormLayers& layers, const std::string& name, torch::nn::Module& module) {
  auto* norm = dynamic_cast<Norm*>(&module);
  if (norm == nullptr) return false;
  // Without track_running_stats there are none.
  if (norm->running_mean.defined()) layers.push_back(std::make_unique<Layer<Norm>>(name, *norm));
  return true;
}

void add(NormLayers& layers, const std::string& name, torch::nn::Module& module) {
  using namespace torch::nn;
  static_cast<void>(add_if<BatchNormLayer, BatchNorm1dImpl>(layers, name, module) ||
                    add_if<BatchNormLayer, BatchNorm2dImpl>(layers, name, module) ||
                    add_if<BatchNormLayer, BatchNorm3dImpl>(layers, name, module) ||
                    add_if<InstanceNormLayer, InstanceNorm1dImpl>(layers, name, module) ||
                    add_if<InstanceNormLayer, InstanceNorm2dImpl>(layers, name, module) ||
                    add_if<InstanceNormLayer, InstanceNorm3dImpl>(layers, name, module));
}

}  // namespace

NormLayers norm_layers_of(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  NormLayers layers;
  // Apart from its submodules, because named_modules() takes only a root that a shared_ptr owns.
  add(layers, module.name(), module);
  std::set<const torch::nn::Module*> seen;  // a module may have several names
  for (const auto& named : module.named_modules({}, /*include_self=*/false)) {
    if (seen.insert(named.value().get()).second) add(layers, named.key(), *named.value());
  }
  return layers;
}

}  // namespace zerosched::detail
