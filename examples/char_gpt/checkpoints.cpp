#include "checkpoints.h"

#include <ATen/Context.h>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <sstream>

namespace {

constexpr const char* kBatchGenerator = "batch_generator";
constexpr const char* kPosition = "position";

// By its device: that of another kind has another state.
std::string libtorch_generator(at::Device device) {
  return "libtorch_generator_" + c10::DeviceTypeName(device.type(), /*lower_case=*/true);
}

}  // namespace

void save_checkpoint(zerosched::ShardedOptimizer& optimizer, const Options& options, const Position& position,
    const std::mt19937_64& generator, at::Device device) {
  zerosched::CheckpointExtra extra;
  std::ostringstream batches;
  batches << generator;
  extra.local.json[kBatchGenerator] = nlohmann::json(batches.str()).dump();
  extra.local.tensors[libtorch_generator(device)] = at::globalContext().defaultGenerator(device).get_state();
  extra.shared.json[kPosition] = nlohmann::json{{"step", position.step}, {"first_loss", position.first_loss},
      {"last_loss",
          position.last_loss}}.dump();
  char name[32];
  std::snprintf(name, sizeof(name), "/step_%08lld", static_cast<long long>(position.step));
  optimizer.save_checkpoint(options.checkpoint_dir + name, extra,
      zerosched::CheckpointOptions().keep_last(options.keep_checkpoints));
}

Position resume(zerosched::ShardedOptimizer& optimizer, const Options& options, std::mt19937_64& generator,
    at::Device device) {
  std::string from = options.resume;
  if (from == kLatestCheckpoint) {
    from = zerosched::latest_checkpoint(options.checkpoint_dir, *optimizer.communicator());
  }
  if (from.empty()) return {};
  const auto extra = optimizer.load_checkpoint(from);
  const auto batches = extra.local.json.find(kBatchGenerator);
  if (batches != extra.local.json.end()) {
    std::istringstream(nlohmann::json::parse(batches->second).get<std::string>()) >> generator;
  }
  const auto state = extra.local.tensors.find(libtorch_generator(device));
  if (state != extra.local.tensors.end()) {
    at::Generator libtorch = at::globalContext().defaultGenerator(device);
    libtorch.set_state(state->second);
  }
  const auto position = nlohmann::json::parse(extra.shared.json.at(kPosition));
  return {position.at("step"), position.at("first_loss"), position.at("last_loss")};
}
