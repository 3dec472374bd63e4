// What looks into TorchScript modules, whose headers are slow to compile.
#include <zerosched/sharded_optimizer.h>
#include <zerosched/trainable.h>

#include "engine/engine.h"

#include <torch/csrc/jit/api/module.h>

namespace zerosched {
namespace {

ModuleTensors tensors_of(const torch::jit::Module& module) {
  ModuleTensors tensors;
  for (const auto& named : module.named_parameters()) {
    if (named.value.defined()) tensors.parameters.emplace_back(named.name, named.value);
  }
  for (const auto& named : module.named_buffers()) {
    if (named.value.defined()) tensors.buffers.emplace_back(named.name, named.value);
  }
  return tensors;
}

}  // namespace

Trainable::Trainable(const torch::jit::Module& module) : module_(tensors_of(module)) {
  groups_.emplace_back(module_->parameters);
  using Object = c10::ivalue::Object;
  look_again_ = [weak = c10::weak_intrusive_ptr<Object>(module._ivalue())]() -> std::optional<ModuleTensors> {
    const c10::intrusive_ptr<Object> alive = weak.lock();
    if (!alive) return std::nullopt;
    return tensors_of(torch::jit::Module(alive));
  };
}

void ShardedOptimizer::ready(const torch::jit::Module& module) {
  if (engine().may_be_in_flight()) ready(tensors_of(module).parameters);
}

}  // namespace zerosched
