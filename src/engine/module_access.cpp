// Apart from sharded_optimizer.cpp, because module.h and archives are slow to compile.
#include <zerosched/sharded_optimizer.h>

#include <torch/nn/module.h>
#include <torch/serialize/archive.h>

namespace zerosched {

std::vector<ParameterGroup> ShardedOptimizer::groups_of(const torch::nn::Module& module) {
  return {ParameterGroup(module.named_parameters())};
}

NamedParameters ShardedOptimizer::buffers_of(const torch::nn::Module& module) {
  NamedParameters buffers;
  for (const auto& item : module.named_buffers()) buffers.emplace_back(item.key(), item.value());
  return buffers;
}

void ShardedOptimizer::save(torch::serialize::OutputArchive&) const {
  TORCH_CHECK(false,
      "torch::save of a sharded optimizer would write this rank's shard only. Call save_checkpoint(dir) on "
      "every rank instead: it saves all shards, and they load at any world size.");
}

void ShardedOptimizer::load(torch::serialize::InputArchive&) {
  TORCH_CHECK(false,
      "torch::load into a sharded optimizer is not possible: an archive does not say how its state "
      "was cut. Call load_checkpoint(dir) on every rank; or load weights into the module, and then call "
      "reset_from_parameters() on every rank.");
}

}  // namespace zerosched
