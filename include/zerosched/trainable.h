#pragma once

#include <zerosched/export.h>
#include <zerosched/parameter_group.h>

#include <functional>
#include <initializer_list>
#include <optional>
#include <vector>

namespace torch::nn {
class Module;
}
namespace torch::jit {
struct Module;
}

namespace zerosched {

/// The tensors of a module under its own names, those of submodules included ("layer.weight").
struct ZEROSCHED_EXPORT ModuleTensors {
  NamedParameters parameters;  ///< one that is registered under several names appears under each
  NamedParameters buffers;     ///< running statistics, for one
};

/// What an optimizer is given to train; a module and groups of parameters turn into one by themselves.
///
/// A module is trained as one group, and everything else that it has is kept: buffers and parameters that
/// require no gradient start from rank 0's, and are saved, loaded and exported with what is trained.
///
/// Groups alone say nothing of buffers, which are then neither broadcast, saved nor loaded; rank 0 warns of it
/// once per process. Where groups are to have options of their own, give optimizers both, the module and its
/// groups.
///
/// Holds the tensors, and the module itself by a weak reference at most.
class ZEROSCHED_EXPORT Trainable {
 public:
  /// The parameters of `module`, and its buffers. Optimizers look at the module again later, to warn of what
  /// was added to it or replaced: if a std::shared_ptr owns it, as in module holders.
  Trainable(const torch::nn::Module& module);
  /// The same of a TorchScript module. Its tensors are trained in place: methods see them.
  Trainable(const torch::jit::Module& module);
  /// Parameters alone.
  Trainable(std::vector<ParameterGroup> groups);
  /// The same.
  Trainable(std::initializer_list<ParameterGroup> groups);

  /// Of the same module, only what is in `groups`, with their options. The names are the module's, also where a
  /// group calls a parameter otherwise, so that checkpoints and exports fit the module. Parameters of the module
  /// in no group are kept like frozen ones, also if they require gradients: never updated. The optimizer's
  /// constructor refuses a parameter that is not the module's.
  Trainable grouped(std::vector<ParameterGroup> groups) const;

  /// What is trained: a module's parameters as one group unless grouped() said otherwise.
  const std::vector<ParameterGroup>& groups() const { return groups_; }
  /// Of the module, as it was given; nothing if there are groups alone.
  const std::optional<ModuleTensors>& module() const { return module_; }
  /// Of the module, as it is by now; nothing if it is gone, is owned by no std::shared_ptr, or was never given.
  std::optional<ModuleTensors> module_now() const;

 private:
  std::vector<ParameterGroup> groups_;
  std::optional<ModuleTensors> module_;
  std::function<std::optional<ModuleTensors>()> look_again_;  ///< empty: there is no way to
};

}  // namespace zerosched
