#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace torch::nn {
class Module;
}
namespace torch::jit {
struct Module;
}

namespace zerosched::detail {

/// Sums of a layer's statistics over batches, on the CPU in double.
struct NormSums {
  at::Tensor mean, var;
  int64_t batches = 0;
  int64_t counted =
      0;  ///< batches by the layer's own counter; LibTorch's InstanceNorm has one and does not count
};

/// A layer with running statistics, which are gathered afresh while this lives: it is in training mode until
/// then. Gets its own statistics back at the end, unless they were replaced.
class NormLayer {
 public:
  explicit NormLayer(std::string name) : name_(std::move(name)) {}
  virtual ~NormLayer() = default;
  NormLayer(const NormLayer&) = delete;
  NormLayer& operator=(const NormLayer&) = delete;

  const std::string& name() const { return name_; }
  /// To be called after each batch.
  virtual void add_batch() = 0;
  /// Over the batches so far.
  virtual NormSums sums() const = 0;
  /// Takes the averages over all ranks, and the counter's sum over them. To be followed by keep().
  virtual void replace(const at::Tensor& mean, const at::Tensor& var, int64_t counted) = 0;
  /// What replace() was given stays.
  virtual void keep() = 0;

 private:
  std::string name_;
};

using NormLayers = std::vector<std::unique_ptr<NormLayer>>;

/// The layers of a module, each with its name.
NormLayers norm_layers_of(torch::nn::Module& module);
/// Throws if there is a layer of whose statistics the batch's own part cannot be told.
NormLayers norm_layers_of(torch::jit::Module& module);

/// Statistics and counter of a layer, with the values that they had.
class RunningStatistics {
 public:
  RunningStatistics(at::Tensor mean, at::Tensor var, at::Tensor batch_count);

  void zero() const;
  void replace(const at::Tensor& mean, const at::Tensor& var) const;
  void restore() const;

  const at::Tensor mean, var, batch_count;

 private:
  at::Tensor mean_before_, var_before_, batch_count_before_;
};

}  // namespace zerosched::detail
