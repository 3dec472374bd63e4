// Running statistics of TorchScript modules.
#include "api/norm_layer.h"
#include "base/check.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include <cmath>
#include <optional>
#include <set>
#include <utility>

namespace zerosched::detail {
namespace {

/// A scripted layer's momentum m is compiled into its code, so it cannot be changed, but it can be read. From
/// statistics that are zero a batch's own, b, are made m b; where a layer runs k times in a forward, k such terms of
/// weights that add up to 1 - (1 - m)^k.
class ScriptLayer final : public NormLayer {
 public:
  ScriptLayer(const std::string& name, torch::jit::Module module, std::optional<double> momentum)
      : NormLayer(name),
        module_(std::move(module)),
        statistics_(tensor("running_mean"), tensor("running_var"), tensor("num_batches_tracked")),
        momentum_(momentum),
        training_before_(module_.is_training()) {
    sums_ = {at::zeros({statistics_.mean.numel()}, at::kDouble),
        at::zeros({statistics_.var.numel()}, at::kDouble)};
    module_.train();
    await_batch();
  }

  ~ScriptLayer() override {
    const at::NoGradGuard no_grad;
    module_.train(training_before_);
    if (!kept_) statistics_.restore();
  }

  void add_batch() override {
    // BatchNorm counts, and its kernels bump no version; InstanceNorm does not count, and bumps it.
    const auto counted = statistics_.batch_count.item<int64_t>();
    if (counted == 0 && statistics_.mean._version() == version_) return;  // this batch did not reach it
    const auto runs = static_cast<double>(counted == 0 ? 1 : counted);
    const double weight = momentum_ ? 1 - std::pow(1 - *momentum_, runs) : 1;
    sums_.mean += statistics_.mean.to(at::kCPU, at::kDouble) / weight;
    sums_.var += statistics_.var.to(at::kCPU, at::kDouble) / weight;
    ++sums_.batches;
    if (counted > 0) ++sums_.counted;
    await_batch();
  }

  NormSums sums() const override { return sums_; }

  void replace(const at::Tensor& mean, const at::Tensor& var, int64_t counted) override {
    statistics_.restore();  // the counter of a layer that does not count
    statistics_.replace(mean, var);
    if (counted > 0) statistics_.batch_count.fill_(counted);
  }

  void keep() override { kept_ = true; }

 private:
  at::Tensor tensor(const char* name) const { return module_.attr(name).toTensor(); }

  void await_batch() {
    statistics_.zero();
    statistics_.batch_count.zero_();  // without a momentum the weight is 1 over the count
    version_ = statistics_.mean._version();
  }

  torch::jit::Module module_;
  const RunningStatistics statistics_;
  std::optional<double> momentum_;
  bool training_before_;
  uint32_t version_ = 0;  ///< of the running mean when the batch began
  bool kept_ = false;
  NormSums sums_;
};

bool has_tensor(const torch::jit::Module& module, const char* name) {
  return module.hasattr(name) && module.attr(name).isTensor() && module.attr(name).toTensor().defined();
}

}  // namespace

NormLayers norm_layers_of(torch::jit::Module& module) {
  const at::NoGradGuard no_grad;
  NormLayers layers;
  std::set<const void*> seen;  // a module may have several names
  for (const auto& named : module.named_modules()) {
    if (!has_tensor(named.value, "running_mean") || !has_tensor(named.value, "running_var")) continue;
    if (!seen.insert(named.value.attr("running_mean").toTensor().unsafeGetTensorImpl()).second) continue;
    const std::string name = named.name.empty() ? "the module itself" : named.name;
    const bool has_momentum = named.value.hasattr("momentum");
    const c10::IValue momentum = has_momentum ? named.value.attr("momentum") : c10::IValue();
    ZEROSCHED_CHECK(has_momentum && (momentum.isNone() || (momentum.isDouble() && momentum.toDouble() > 0)) &&
                        has_tensor(named.value, "num_batches_tracked"),
        "update_batch_norm: TorchScript layer '", name,
        "' has running statistics, but no momentum above 0 and num_batches_tracked to tell by what a batch "
        "adds to "
        "them; tracing loses these. Script the module with torch.jit.script from layers of torch.nn, or "
        "compute its "
        "statistics in Python.");
    layers.push_back(std::make_unique<ScriptLayer>(
        name, named.value, momentum.isNone() ? std::nullopt : std::optional<double>(momentum.toDouble())));
  }
  return layers;
}

}  // namespace zerosched::detail
