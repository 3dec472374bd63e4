#include "comm/agree.h"
#include "engine/equal_on_ranks.h"
#include "engine/parameter_claim.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/manifest.h"
#include "io/saved_state.h"
#include "io/tensor_file.h"
#include "io/tensor_name.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/StringUtil.h>

#include <map>
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

bool is_double(const ParameterSpec& parameter) { return parameter.dtype == c10::ScalarType::Double; }

void check_parameter(const std::string& dir, const ParameterSpec& saved, const ParameterSpec& own) {
  const std::string who = "parameter '" + own.name + "' ";
  if (saved.sizes != own.sizes) {
    refuse(dir, c10::str(who, "has shape ", at::IntArrayRef(saved.sizes), " there and ",
                    at::IntArrayRef(own.sizes), " here"));
  }
  if (saved.strides != own.strides) {
    refuse(dir, c10::str(who, "has strides ", at::IntArrayRef(saved.strides), " there and ",
                    at::IntArrayRef(own.strides),
                    " here; construct the optimizer over a module in the memory format that was saved"));
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

void check_options(
    const std::string& dir, const Manifest& manifest, const Engine& engine, const GroupOptions& options) {
  for (size_t g = 0; g < options.size(); ++g) {
    const auto with_saved_values = options[g]->clone();
    try {
      engine.algorithm().assign(*with_saved_values, manifest.groups[g].options);
      engine.algorithm().check(*with_saved_values);
    } catch (const std::exception& error) {
      refuse(dir, "the options of group " + std::to_string(g) + ": " + message_of(error));
    }
  }
}

void verify_all(const TensorFile& file, const ManifestFile& listed, const std::set<std::string>& tensors) {
  file.check_byte_count(listed.byte_count);
  for (const std::string& tensor : tensors) {
    const auto checksum = listed.checksums.find(tensor);
    if (checksum == listed.checksums.end())
      refuse(file.path(), "the manifest has no checksum of '" + tensor + "'");
    file.verify(tensor, checksum->second);
  }
}

void verify_unsharded(const std::string& dir, const Manifest& manifest, const NamedTensors& unsharded) {
  const TensorFile file(dir + '/' + kModuleFileName);
  std::set<std::string> expected;
  for (const auto& named : unsharded) expected.insert(named.first);
  std::set<std::string> present;
  for (const SafetensorsEntry& entry : file.entries()) {
    if (tensor_name::has_prefix(entry.name, tensor_name::kShared)) continue;
    if (expected.count(entry.name) == 0)
      refuse(file.path(), "has '" + entry.name + "', which this optimizer does not know");
    present.insert(entry.name);
  }
  for (const auto& [name, target] : unsharded) {
    if (present.count(name) == 0) refuse(file.path(), "has no '" + name + "'");
    const at::IntArrayRef shape = file.entry(name).shape;
    if (shape != target.sizes()) {
      refuse(file.path(), c10::str("'", name, "' has shape ", shape, " there and ", target.sizes(), " here"));
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
  const NamedTensors unsharded = tensor_name::unsharded(engine.model());

  std::optional<SavedState> state;
  CheckpointExtra extra;
  agree_on(communicator, [&] {
    const std::string why_not = engine.why_not_replaceable();
    if (!why_not.empty()) throw std::runtime_error("load_checkpoint: " + why_not);
    check_fits(dir, manifest, engine);
    check_options(dir, manifest, engine, options);
    state.emplace(manifest, engine, dir);
    state->verify();
    if (rank == 0) verify_unsharded(dir, manifest, unsharded);
    extra = read_extra(dir, manifest, rank);
  });

  const at::NoGradGuard no_grad;
  try {
    agree_on(communicator, [&] {
      const auto use = engine.enter();
      state->read_into_shards();
      if (rank != 0) return;
      const TensorFile file(dir + '/' + kModuleFileName);
      for (const auto& [name, target] : unsharded) {
        if (ParameterClaim::is_claimed(target)) continue;
        engine.executor().from_host(target.detach(), file.read(name));
      }
    });
    std::vector<at::Tensor> targets;
    for (const auto& named : unsharded) targets.push_back(named.second);
    broadcast_values(communicator, ParameterClaim::unclaimed(targets));
    std::vector<GroupState> groups;
    for (const auto& group : manifest.groups) groups.push_back(group.state);
    engine.state_was_replaced(std::move(groups), manifest.finite);
  } catch (const std::exception& error) {
    communicator.abort(
        "loading " + dir + " failed half-way, and the optimizer's state is lost: " + message_of(error));
    throw;
  }
  for (size_t g = 0; g < options.size(); ++g) {
    engine.algorithm().assign(*options[g], manifest.groups[g].options);
  }
  return extra;
}

}  // namespace zerosched::detail
