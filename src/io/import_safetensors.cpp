#include "io/module_file.h"

#include "comm/agree.h"
#include "engine/equal_on_ranks.h"
#include "engine/parameter_claim.h"
#include "engine/savable.h"
#include "io/tensor_file.h"

#include <ATen/core/grad_mode.h>

#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace zerosched::detail {

namespace {

/// What a file must hold, by the names that are looked for.
struct Target {
  at::Tensor tensor;
  std::vector<std::string> names;  ///< the first of them that is in the file counts
  bool is_frozen = false;          ///< or trained by another optimizer, to which it is left
};

std::vector<Target> targets_of(const Model& model) {
  std::vector<Target> targets;
  const auto add = [&](const std::string& name, const at::Tensor& tensor, bool is_frozen = false) {
    targets.push_back({tensor, names_of(model, name), is_frozen});
  };
  for (size_t p = 0; p < model.names.size(); ++p) add(model.names[p], model.parameters[p]);
  for (size_t f = 0; f < model.frozen.size(); ++f) add(model.frozen_names[f], model.frozen[f], true);
  for (size_t b = 0; b < model.buffers.size(); ++b) add(model.buffer_names[b], model.buffers[b]);
  return targets;
}

/// The tensor to read for each target. Throws if one is missing or of another shape, or the file has more.
std::vector<std::string> match(const TensorFile& file, const std::vector<Target>& targets) {
  std::set<std::string> unused;
  for (const SafetensorsEntry& entry : file.entries()) unused.insert(entry.name);
  std::vector<std::string> matched;
  for (const Target& target : targets) {
    std::string found;
    for (const std::string& name : target.names) {
      if (unused.erase(name) == 0) continue;
      const SafetensorsEntry& entry = file.entry(name);
      if (target.tensor.sizes() != at::IntArrayRef(entry.shape)) {
        std::ostringstream message;
        message << file.path() << ": tensor '" << name << "' has shape " << at::IntArrayRef(entry.shape)
                << " there and " << target.tensor.sizes() << " here";
        throw std::runtime_error(message.str());
      }
      if (found.empty()) found = name;
    }
    if (found.empty())
      throw std::runtime_error(file.path() + ": has no tensor '" + target.names.front() + "'");
    matched.push_back(found);
  }
  if (!unused.empty()) {
    throw std::runtime_error(file.path() + ": has tensor '" + *unused.begin() +
                             "', which is neither a parameter nor a buffer of this optimizer's module");
  }
  return matched;
}

}  // namespace

void import_safetensors(Savable& optimizer, const std::string& path) {
  optimizer.check();
  Communicator& communicator = *optimizer.communicator();
  check_same_on_all_ranks(communicator, {"import_safetensors(\"" + path + "\")"});
  const std::vector<Target> targets = targets_of(optimizer.state().model());
  std::optional<TensorFile> file;  // on rank 0; once, so that another that takes its name is not read
  std::vector<std::string> matched;
  agree_on(communicator, [&] {
    const std::string why_not = optimizer.why_not_replaceable();
    if (!why_not.empty()) throw std::runtime_error("import_safetensors: " + why_not);
    if (communicator.rank() == 0) matched = match(file.emplace(path), targets);
  });
  const at::NoGradGuard no_grad;
  try {
    agree_on(communicator, [&] {
      if (!file) return;
      const auto use = optimizer.enter();
      for (size_t i = 0; i < targets.size(); ++i) {
        if (targets[i].is_frozen && ParameterClaim::is_claimed(targets[i].tensor)) continue;
        optimizer.state().executor().from_host(targets[i].tensor.detach(), file->read(matched[i]));
      }
    });
    optimizer.reset_from_parameters();
  } catch (const std::exception& error) {
    communicator.abort(
        "importing " + path + " failed half-way, and the parameters are lost: " + message_of(error));
    throw;
  }
}

}  // namespace zerosched::detail
