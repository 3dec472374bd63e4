#pragma once

#include <zerosched/communicator.h>
#include <zerosched/export.h>

#include <ATen/core/grad_mode.h>

#include <exception>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace torch::nn {
class Module;
}
namespace torch::jit {
struct Module;
}

namespace zerosched {

namespace detail {

/// While it lives, the BatchNorm and InstanceNorm layers of a module gather running statistics afresh, as plain
/// averages over batches. Restores momentum and training flags at the end, and the old statistics unless finish()
/// succeeded.
class ZEROSCHED_EXPORT BatchNormPass {
 public:
  explicit BatchNormPass(torch::nn::Module& module);
  explicit BatchNormPass(torch::jit::Module& module);
  ~BatchNormPass();
  BatchNormPass(const BatchNormPass&) = delete;
  BatchNormPass& operator=(const BatchNormPass&) = delete;

  /// To be called after each batch. Local.
  void add_batch();

  /// Averages the statistics over all ranks' batches. Collective; throws on every rank, without changing
  /// statistics, if no rank has seen a batch, a rank's statistics are not finite, or `local_error` of some rank is not empty.
  void finish(Communicator& communicator, const std::string& local_error);

  /// Its message, without the backtrace of LibTorch's errors.
  static std::string message_of(const std::exception& exception);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

template <typename Batch, typename = void>
struct has_data : std::false_type {};
template <typename Batch>
struct has_data<Batch, std::void_t<decltype(std::declval<Batch&>().data)>> : std::true_type {};

}  // namespace detail

/// Recomputes the running statistics of the BatchNorm layers of `module`, and of InstanceNorm layers that track
/// them, for the parameters it holds now: call it inside eval_scope(), because statistics gathered in training
/// belong to y and not to x. Collective.
///
/// `module` is a module or module holder with a forward() of one tensor, or a TorchScript module; `loader`
/// yields tensors, or batches with a member `data` such as torch::data::Example<>. Each rank passes its own
/// part of the data; ranks may have different numbers of batches, and end with the same statistics: the average
/// over all batches of all ranks, as with momentum = nullopt. These layers run in training mode meanwhile; all
/// other layers in the mode they are in, so call module.eval() before to be without dropout. Of an InstanceNorm
/// layer that runs several times in a forward the last counts; of a TorchScript layer later ones weigh more.
///
/// Every rank throws, and the old statistics stay, if the forward of a rank throws, a layer sees no batch on any
/// rank, or a TorchScript layer does not say its momentum, as after tracing.
template <typename ModuleOrHolder, typename Loader>
void update_batch_norm(ModuleOrHolder& module, Loader& loader, Communicator& communicator) {
  const at::NoGradGuard no_grad;
  auto& implementation = [&]() -> auto& {
    if constexpr (std::is_base_of_v<torch::nn::Module, ModuleOrHolder> ||
                  std::is_same_v<torch::jit::Module, ModuleOrHolder>) {
      return module;
    } else {
      return *module;
    }
  }
  ();
  const auto forward = [&](const auto& input) {
    if constexpr (std::is_same_v<torch::jit::Module, ModuleOrHolder>) {
      implementation.forward({input});
    } else {
      implementation.forward(input);
    }
  };
  detail::BatchNormPass pass(implementation);
  std::string error;
  try {
    for (auto&& batch : loader) {
      if constexpr (detail::has_data<std::decay_t<decltype(batch)>>::value) {
        forward(batch.data);
      } else {
        forward(batch);
      }
      pass.add_batch();
    }
  } catch (const std::exception& exception) {
    error = detail::BatchNormPass::message_of(exception);  // the other ranks must not wait for this one
  }
  pass.finish(communicator, error);
}

}  // namespace zerosched
