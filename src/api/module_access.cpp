// What looks into torch::nn::Module and archives, whose headers are slow to compile.
#include <zerosched/sharded_optimizer.h>
#include <zerosched/trainable.h>

#include "base/check.h"
#include "engine/engine.h"

#include <torch/nn/module.h>
#include <torch/serialize/archive.h>

namespace zerosched {
namespace {

NamedParameters pairs_of(const torch::OrderedDict<std::string, at::Tensor>& named) {
  NamedParameters pairs;
  pairs.reserve(named.size());
  for (const auto& item : named) pairs.emplace_back(item.key(), item.value());
  return pairs;
}

ModuleTensors tensors_of(const torch::nn::Module& module) {
  return {pairs_of(module.named_parameters()), pairs_of(module.named_buffers())};
}

}  // namespace

Trainable::Trainable(const torch::nn::Module& module) : module_(tensors_of(module)) {
  groups_.emplace_back(module_->parameters);
  look_again_ = [weak = module.weak_from_this()]() -> std::optional<ModuleTensors> {
    const auto alive = weak.lock();
    if (!alive) return std::nullopt;
    return tensors_of(*alive);
  };
}

void ShardedOptimizer::ready(const torch::nn::Module& module) {
  if (engine().may_be_in_flight()) engine_->ready(module.parameters());
}

void ShardedOptimizer::save(torch::serialize::OutputArchive&) const {
  ZEROSCHED_CHECK(false,
      "torch::save of a sharded optimizer would write this rank's shard only. Call save_checkpoint(dir) on "
      "every rank instead: it saves all shards, and they load at any world size.");
}

void ShardedOptimizer::load(torch::serialize::InputArchive&) {
  ZEROSCHED_CHECK(false,
      "torch::load into a sharded optimizer is not possible: an archive does not say how its state "
      "was cut. Call load_checkpoint(dir) on every rank; or load weights into the module, and then call "
      "reset_from_parameters() on every rank.");
}

}  // namespace zerosched
