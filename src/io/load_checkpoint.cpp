#include "comm/agree.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/manifest.h"
#include "io/saved_state.h"
#include "io/tensor_file.h"
#include "io/tensor_name.h"

#include <ATen/core/grad_mode.h>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

// A checkpoint is loaded in two halves. The first changes nothing: rank 0 reads the manifest, every rank
// compares it with its optimizer and verifies the bytes that it needs, and the ranks agree that all is well.
// Only then is the state overwritten; what fails after that leaves the optimizer unusable.
namespace zerosched::detail {

namespace {

[[noreturn]] void refuse(const std::string& dir, const std::string& what) {
  throw std::runtime_error(dir + ": " + what);
}

std::string text_of(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + ']';
}

bool is_double(const ParameterSpec& parameter) { return parameter.dtype == c10::ScalarType::Double; }

void check_parameter(const std::string& dir, const ParameterSpec& saved, const ParameterSpec& own) {
  const std::string who = "parameter '" + own.name + "' ";
  if (saved.sizes != own.sizes) {
    refuse(dir, who + "has shape " + text_of(saved.sizes) + " there and " + text_of(own.sizes) + " here");
  }
  if (saved.strides != own.strides) {
    refuse(dir, who + "has strides " + text_of(saved.strides) + " there and " + text_of(own.strides) +
                    " here; construct the optimizer over a module in the memory format that was saved");
  }
  if (saved.group != own.group) {
    refuse(dir, who + "is in group " + std::to_string(saved.group) + " there and in group " +
                    std::to_string(own.group) + " here");
  }
  if (is_double(saved) != is_double(own)) {
    refuse(dir, who + "is " + safetensors_name(saved.dtype) + " there and " + safetensors_name(own.dtype) +
                    " here, so their states are of different types");
  }
}

void check_fits(const std::string& dir, const Manifest& manifest, const Engine& engine) {
  if (manifest.optimizer != engine.algorithm().name()) {
    refuse(
        dir, "was saved by " + manifest.optimizer + ", and this optimizer is " + engine.algorithm().name());
  }
  if (manifest.groups.size() != engine.groups().size()) {
    refuse(dir, "has " + std::to_string(manifest.groups.size()) +
                    " parameter groups, and this optimizer has " + std::to_string(engine.groups().size()));
  }
  std::map<std::string, const ParameterSpec*> saved;
  for (const ParameterSpec& parameter : manifest.parameters) saved[parameter.name] = &parameter;
  for (const ParameterSpec& own : engine.model().specs) {
    const auto found = saved.find(own.name);
    if (found == saved.end()) refuse(dir, "has no parameter '" + own.name + "', which this optimizer trains");
    check_parameter(dir, *found->second, own);
    saved.erase(found);
  }
  if (!saved.empty())
    refuse(dir, "has parameter '" + saved.begin()->first + "', which this optimizer does not train");
}

/// Options that take the saved values, checked.
std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> saved_options(
    const std::string& dir, const Manifest& manifest, const Engine& engine, const GroupOptions& options) {
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> result;
  for (size_t g = 0; g < options.size(); ++g) {
    result.push_back(options[g]->clone());
    try {
      engine.algorithm().assign(*result.back(), manifest.groups[g].options);
      engine.algorithm().check(*result.back());
    } catch (const std::exception& error) {
      refuse(dir, "the options of group " + std::to_string(g) + ": " + message_of(error));
    }
  }
  return result;
}

/// What rank 0 reads from the module's file and gives to all.
struct Unsharded {
  std::vector<std::string> names;
  std::vector<at::Tensor> targets;

  explicit Unsharded(const Model& model) {
    for (size_t f = 0; f < model.frozen.size(); ++f) {
      names.push_back(tensor_name::kFrozen + model.frozen_names[f]);
      targets.push_back(model.frozen[f]);
    }
    for (size_t b = 0; b < model.buffers.size(); ++b) {
      names.push_back(tensor_name::kBuffer + model.buffer_names[b]);
      targets.push_back(model.buffers[b]);
    }
  }
};

void verify_all(const TensorFile& file, const ManifestFile& listed, const std::set<std::string>& tensors) {
  if (file.byte_count() != listed.byte_count) {
    refuse(file.path(), "has " + std::to_string(file.byte_count()) + " bytes instead of " +
                            std::to_string(listed.byte_count));
  }
  for (const std::string& tensor : tensors) {
    const auto checksum = listed.checksums.find(tensor);
    if (checksum == listed.checksums.end())
      refuse(file.path(), "the manifest has no checksum of '" + tensor + "'");
    file.verify(tensor, checksum->second);
  }
}

void verify_unsharded(const std::string& dir, const Manifest& manifest, const Unsharded& unsharded) {
  const TensorFile file(dir + '/' + kModuleFileName);
  const std::set<std::string> expected(unsharded.names.begin(), unsharded.names.end());
  std::set<std::string> present;
  for (const SafetensorsEntry& entry : file.entries()) {
    if (tensor_name::has_prefix(entry.name, tensor_name::kShared)) continue;
    if (expected.count(entry.name) == 0)
      refuse(file.path(), "has '" + entry.name + "', which this optimizer does not know");
    present.insert(entry.name);
  }
  for (size_t i = 0; i < unsharded.names.size(); ++i) {
    if (present.count(unsharded.names[i]) == 0) refuse(file.path(), "has no '" + unsharded.names[i] + "'");
    const SafetensorsEntry& entry = file.entry(unsharded.names[i]);
    if (entry.shape != unsharded.targets[i].sizes().vec()) {
      refuse(file.path(), "'" + entry.name + "' has shape " + text_of(entry.shape) + " there and " +
                              text_of(unsharded.targets[i].sizes().vec()) + " here");
    }
  }
  verify_all(file, manifest.files.at(kModuleFileName), present);
}

/// The tensors of one file whose names begin with `prefix`, verified.
std::map<std::string, at::Tensor> added_tensors(const std::string& dir, const Manifest& manifest,
    const std::string& file_name, const std::string& prefix) {
  const TensorFile file(dir + '/' + file_name);
  std::set<std::string> names;
  for (const SafetensorsEntry& entry : file.entries()) {
    if (tensor_name::has_prefix(entry.name, prefix)) names.insert(entry.name);
  }
  verify_all(file, manifest.files.at(file_name), names);
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : names) tensors[name.substr(prefix.size())] = file.read(name);
  return tensors;
}

CheckpointExtra read_extra(const std::string& dir, const Manifest& manifest, int rank) {
  CheckpointExtra extra;
  extra.world_size = static_cast<int>(manifest.world_size);
  extra.shared = {added_tensors(dir, manifest, kModuleFileName, tensor_name::kShared), manifest.shared_json};
  if (rank < manifest.world_size) {
    extra.local = {added_tensors(dir, manifest, rank_file_name(rank), tensor_name::kLocal),
        manifest.local_json[static_cast<size_t>(rank)]};
  }
  return extra;
}

Manifest read_manifest(Communicator& communicator, const std::string& dir) {
  const std::string path = dir + '/' + kManifestName;
  std::string text;
  agree_on(communicator, [&] {
    if (communicator.rank() == 0) text = read_text(path);
  });
  text = broadcast_bytes(communicator, text, 0, {"manifest"});
  try {
    return parse_manifest(text);
  } catch (const std::exception& error) {
    refuse(path, error.what());  // on every rank, since all have the same text
  }
}

}  // namespace

CheckpointExtra load_checkpoint(Engine& engine, const GroupOptions& options, const std::string& dir) {
  engine.check();
  Communicator& communicator = *engine.communicator();
  const int rank = communicator.rank();
  check_same_on_all_ranks(communicator, {"load_checkpoint(\"" + dir + "\")"});
  const Manifest manifest = read_manifest(communicator, dir);
  const Unsharded unsharded(engine.model());

  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> new_options;
  std::optional<SavedState> state;
  CheckpointExtra extra;
  agree_on(communicator, [&] {
    const std::string why_not = engine.why_not_replaceable();
    if (!why_not.empty()) throw std::runtime_error("load_checkpoint: " + why_not);
    check_fits(dir, manifest, engine);
    new_options = saved_options(dir, manifest, engine, options);
    state.emplace(manifest, engine, dir);
    state->verify();
    if (rank == 0) verify_unsharded(dir, manifest, unsharded);
    extra = read_extra(dir, manifest, rank);
  });

  const at::NoGradGuard no_grad;
  try {
    agree_on(communicator, [&] {
      state->read_into_shards();
      if (rank != 0) return;
      const TensorFile file(dir + '/' + kModuleFileName);
      for (size_t i = 0; i < unsharded.names.size(); ++i) {
        unsharded.targets[i].detach().copy_(file.read(unsharded.names[i]));
      }
    });
    broadcast_values(communicator, unsharded.targets);
    std::vector<GroupState> groups;
    for (const auto& group : manifest.groups) groups.push_back(group.state);
    engine.state_was_replaced(std::move(groups));
  } catch (const std::exception& error) {
    communicator.abort(
        "loading " + dir + " failed half-way, and the optimizer's state is lost: " + message_of(error));
    throw;
  }
  for (size_t g = 0; g < options.size(); ++g) {
    engine.algorithm().assign(*options[g], engine.algorithm().values(*new_options[g]));
  }
  return extra;
}

}  // namespace zerosched::detail
