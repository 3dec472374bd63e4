#include <zerosched/trainable.h>
#include <zerosched/update_batch_norm.h>

#include "api/norm_layer.h"
#include "base/check.h"
#include "base/message_of.h"
#include "comm/agree.h"
#include "comm/failure/whereabouts.h"
#include "engine/parameter_claim.h"

#include <ATen/ATen.h>

#include <utility>
#include <vector>

namespace zerosched::detail {

class BatchNormPass::Impl {
 public:
  template <typename Module>
  explicit Impl(Module& module) {
    try {
      // What forward is going to use, whether it says so or not.
      std::vector<at::Tensor> parameters;
      const Trainable trainable(module);
      for (const auto& named : trainable.module()->parameters) parameters.push_back(named.second);
      ParameterClaim::settle(parameters);
      layers_ = norm_layers_of(module);
    } catch (const std::exception& exception) {
      error_ = detail::message_of(exception);  // for finish(), where all ranks hear of it
    }
  }

  void add_batch() {
    const at::NoGradGuard no_grad;
    for (const auto& layer : layers_) layer->add_batch();
  }

  // One batch with a NaN would be in every rank's statistics.
  std::string not_finite() const {
    for (const auto& layer : layers_) {
      const NormSums sums = layer->sums();
      if (at::isfinite(sums.mean).all().item<bool>() && at::isfinite(sums.var).all().item<bool>()) continue;
      return "update_batch_norm: a batch of this rank gave layer '" + layer->name() +
             "' statistics that are not finite; the old ones stay. Look for an inf or a NaN in the data.";
    }
    return {};
  }

  void finish(Communicator& communicator, const std::string& local_error) {
    const InCall call("update_batch_norm()");
    agree(communicator, !error_.empty() ? error_ : !local_error.empty() ? local_error : not_finite());
    if (layers_.empty()) return;
    const at::NoGradGuard no_grad;
    // Sums over batches, so that ranks with more of them weigh more: per layer the mean, the variance and the two
    // counts.
    std::vector<at::Tensor> parts;
    for (const auto& layer : layers_) {
      const NormSums sums = layer->sums();
      parts.insert(parts.end(), {sums.mean, sums.var, at::full({1}, sums.batches, at::kDouble),
                                    at::full({1}, sums.counted, at::kDouble)});
    }
    const at::Tensor sums = at::cat(parts);
    communicator.all_reduce(sums, ReduceOp::sum, {"batch norm statistics"})->wait();
    int64_t at = 0;
    const auto next = [&](int64_t numel) { return sums.narrow(0, std::exchange(at, at + numel), numel); };
    for (size_t i = 0; i < layers_.size(); ++i) {
      const at::Tensor mean = next(parts[4 * i].numel());
      const at::Tensor var = next(parts[4 * i + 1].numel());
      const auto batches = next(1).item<double>();
      const auto counted = next(1).item<double>();
      ZEROSCHED_CHECK(batches > 0, "update_batch_norm: no rank's loader gave layer '", layers_[i]->name(),
          "' a batch, so it has no statistics; pass a loader that is not empty.");
      layers_[i]->replace(mean / batches, var / batches, static_cast<int64_t>(counted));
    }
    for (const auto& layer : layers_) layer->keep();
  }

 private:
  NormLayers layers_;
  std::string error_;
};

BatchNormPass::BatchNormPass(torch::nn::Module& module) : impl_(std::make_unique<Impl>(module)) {}
BatchNormPass::BatchNormPass(torch::jit::Module& module) : impl_(std::make_unique<Impl>(module)) {}
BatchNormPass::~BatchNormPass() = default;

void BatchNormPass::add_batch() { impl_->add_batch(); }

void BatchNormPass::finish(Communicator& communicator, const std::string& local_error) {
  impl_->finish(communicator, local_error);
}

std::string BatchNormPass::message_of(const std::exception& exception) {
  return detail::message_of(exception);
}

}  // namespace zerosched::detail
