#include "comm/agree.h"
#include "engine/equal_on_ranks.h"
#include "io/checkpoint.h"
#include "io/checkpoint_list.h"
#include "io/checkpoint_names.h"
#include "io/file.h"
#include "io/optimizer_load.h"
#include "io/tensor_name.h"

#include <ATen/core/grad_mode.h>

#include <deque>
#include <exception>
#include <map>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <utility>

// A checkpoint is loaded in two halves. The first changes nothing: rank 0 reads the manifests, every rank
// compares them with its optimizers and verifies the bytes that it needs, and the ranks agree that all is well.
// Only then is the state overwritten; what fails after that leaves the optimizers unusable. If the manifest is another
// one at the end, other files may have been read than were verified, and all is done again.
namespace zerosched::detail {

namespace {

// A job that replaces a checkpoint each time while it is read is not one that saves now and then.
constexpr int kTries = 3;

[[noreturn]] void refuse(const std::string& dir, const std::string& what) {
  throw std::runtime_error(dir + ": " + what);
}

/// The tensors of one file whose names begin with `prefix`, verified.
std::map<std::string, at::Tensor> added_tensors(const std::string& dir, const Manifest& manifest,
    const std::string& file_name, const std::string& prefix) {
  const TensorFile file(dir + '/' + file_name);
  const ManifestFile& listed = manifest.files.at(file_name);
  file.check_byte_count(listed.byte_count);
  std::map<std::string, at::Tensor> tensors;
  for (const SafetensorsEntry& entry : file.entries()) {
    if (!tensor_name::has_prefix(entry.name, prefix)) continue;
    const auto checksum = listed.checksums.find(entry.name);
    if (checksum == listed.checksums.end())
      refuse(file.path(), "the manifest has no checksum of '" + entry.name + "'");
    file.verify(entry.name, checksum->second);
    tensors[entry.name.substr(prefix.size())] = file.read(entry.name);
  }
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

std::string manifest_path(const std::string& dir) { return dir + '/' + kManifestName; }

/// Rank 0's.
std::string read_manifest(Communicator& communicator, const std::string& dir) {
  std::string text;
  agree_on(communicator, [&] {
    if (communicator.rank() == 0) text = read_text(manifest_path(dir));
  });
  return broadcast_bytes(communicator, text, 0, {"manifest"});
}

/// What is wrong with the text is so on every rank.
template <typename Parse>
auto parsed(const std::string& dir, const std::string& text, Parse&& parse) {
  try {
    return parse(text);
  } catch (const std::exception& error) {
    refuse(manifest_path(dir), error.what());
  }
}

/// Where rank 0 finds the checkpoint: caches of a network file system may say something else elsewhere.
std::string find(Communicator& communicator, const std::string& dir) {
  std::string found;
  agree_on(communicator, [&] {
    if (communicator.rank() == 0) found = resolve_checkpoint(dir);
  });
  return broadcast_bytes(communicator, found, 0, {"checkpoint"});
}

/// The folders with each optimizer's own checkpoint. `text`: the manifest at the top.
std::vector<std::string> parts_of(const std::string& dir, const std::string& text, size_t expected) {
  const auto classes = parsed(dir, text, [](const std::string& top) {
    return is_of_several(top) ? parse_summary(top).optimizers : std::vector<std::string>();
  });
  if (classes.empty()) {
    if (expected != 1) {
      refuse(dir, "is of one optimizer, and " + std::to_string(expected) + " were given to load_checkpoint");
    }
    return {dir};
  }
  if (classes.size() != expected) {
    std::string names;
    for (const std::string& name : classes) names += (names.empty() ? "" : ", ") + name;
    refuse(dir, "is of " + std::to_string(classes.size()) + " optimizers (" + names + "), and " +
                    std::to_string(expected) + (expected == 1 ? " is to load it" : " are to load it") +
                    ". Give all of them, in the order in which they were saved: "
                    "zerosched::load_checkpoint(dir, {&first, &second}), with nullptr for what is not "
                    "wanted; or load "
                    "one from its folder, such as " +
                    dir + '/' + part_name(0));
  }
  std::vector<std::string> parts;
  for (size_t part = 0; part < classes.size(); ++part) parts.push_back(dir + '/' + part_name(part));
  return parts;
}

Communicator& first_communicator(const std::vector<CheckpointedOptimizer>& optimizers) {
  size_t first = 0;
  while (optimizers[first].optimizer == nullptr) ++first;
  return *optimizers[first].optimizer->communicator();
}

/// What is reported of a partial load; of several optimizers each name says of which.
void report(const LoadPlan& plan, const std::string& prefix, LoadedCheckpoint& loaded) {
  for (const auto& [name, what] : plan.taken) loaded.taken[prefix + name] = what;
  for (const auto& [name, why] : plan.not_taken) loaded.not_taken[prefix + name] = why;
}

/// The first half.
struct Prepared {
  std::string dir;  ///< where it was found
  std::string top;  ///< the manifest there
  std::deque<OptimizerLoad> loads;
  std::vector<size_t> numbers;  ///< of the optimizers that are loaded
  LoadedCheckpoint loaded;
};

void prepare(Prepared& prepared, const std::vector<CheckpointedOptimizer>& optimizers,
    Communicator& communicator, const std::string& dir, const LoadOptions& how) {
  prepared.dir = find(communicator, dir);
  prepared.top = read_manifest(communicator, prepared.dir);
  const std::vector<std::string> parts = parts_of(prepared.dir, prepared.top, optimizers.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    if (optimizers[i].optimizer == nullptr && i > 0) continue;
    const std::string text = parts.size() == 1 ? prepared.top : read_manifest(communicator, parts[i]);
    Manifest manifest = parsed(parts[i], text, [](const std::string& whole) {
      Manifest result = parse_manifest(whole);
      check_numbers(result);
      return result;
    });
    if (i == 0) {  // which has what the trainer added
      agree_on(
          communicator, [&] { prepared.loaded.extra = read_extra(parts[0], manifest, communicator.rank()); });
      prepared.loaded.world_size = prepared.loaded.extra.world_size;
      if (optimizers[0].optimizer == nullptr) continue;
    }
    prepared.loads.emplace_back(optimizers[i], parts[i], std::move(manifest));
    prepared.numbers.push_back(i);
  }
  agree_on(communicator, [&] {
    for (OptimizerLoad& load : prepared.loads) load.prepare(how);
  });
  if (!how.partial()) return;
  for (size_t i = 0; i < prepared.loads.size(); ++i) {
    report(prepared.loads[i].plan(),
        optimizers.size() == 1 ? "" : "optimizer " + std::to_string(prepared.numbers[i]) + ": ",
        prepared.loaded);
  }
}

enum class ManifestNow { same, another, none };

/// What this rank finds where the manifest was read. Its length and first bytes tell, which have the time when it was made.
ManifestNow look_again(const Prepared& prepared) {
  if (prepared.top.empty()) return ManifestNow::none;
  try {
    const File file = File::open(manifest_path(prepared.dir));
    const bool same = file.size() == prepared.top.size() &&
                      file.read_head(kManifestHeadBytes) == prepared.top.substr(0, kManifestHeadBytes);
    return same ? ManifestNow::same : ManifestNow::another;
  } catch (const std::system_error& error) {
    return is_absence(error.code()) ? ManifestNow::none : ManifestNow::another;
  } catch (const std::exception&) {
    return ManifestNow::another;
  }
}

/// Whether another job explains what was read since the manifest: it has replaced the checkpoint, or, if reading failed, has
/// deleted it. Of one that is deleted after it was read nothing is missing. Every rank looks, as a rank whose cache knows
/// a new folder may have read from that. Collective.
bool was_replaced(Communicator& communicator, const Prepared& prepared, bool failed) {
  const ManifestNow seen = look_again(prepared);
  const bool is_ours = seen == ManifestNow::same || (seen == ManifestNow::none && !failed);
  return !on_all_ranks(communicator, is_ours, "checkpoint is still there");
}

}  // namespace

LoadedCheckpoint load_checkpoint(
    const std::vector<CheckpointedOptimizer>& optimizers, const std::string& dir, const LoadOptions& how) {
  for (const CheckpointedOptimizer& each : optimizers) {
    if (each.optimizer != nullptr) each.optimizer->check();
  }
  Communicator& communicator = first_communicator(optimizers);
  check_same_on_all_ranks(
      communicator, {"load_checkpoint(\"" + dir + (how.partial() ? "\") in part" : "\")")});
  if (dir.empty()) {
    throw std::runtime_error(
        "load_checkpoint: no checkpoint is named; latest_checkpoint() returns an empty name where there is "
        "none");
  }
  const at::NoGradGuard no_grad;
  std::optional<Prepared> prepared;
  bool is_overwritten = false;
  std::map<std::string, std::string> overwritten;  // what of the optimizers, by a partial load
  try {
    for (int tries = 1;; ++tries) {
      prepared.emplace();
      std::exception_ptr failure;
      try {
        prepare(*prepared, optimizers, communicator, dir, how);
        agree_on(communicator, [&] {
          if (is_overwritten && prepared->loaded.taken != overwritten) {
            refuse(prepared->dir, "another job has put it in the place of one of other parameters");
          }
        });
        is_overwritten = true;
        overwritten = prepared->loaded.taken;
        agree_on(communicator, [&] {
          for (OptimizerLoad& load : prepared->loads) load.read();
        });
      } catch (const AgreedError&) {
        failure = std::current_exception();
      }
      const bool once_more = was_replaced(communicator, *prepared, failure != nullptr);
      if (once_more && tries < kTries) continue;
      if (once_more && !prepared->top.empty()) refuse(dir, "was replaced each time while it was read");
      if (failure) std::rethrow_exception(failure);
      break;
    }
    for (OptimizerLoad& load : prepared->loads) load.settle();
  } catch (const std::exception& error) {
    if (!is_overwritten) throw;
    for (const CheckpointedOptimizer& each : optimizers) {
      if (each.optimizer == nullptr) continue;
      each.optimizer->communicator()->abort(
          "loading " + dir + " failed half-way, and the optimizer's state is lost: " + message_of(error));
    }
    throw;
  }
  for (OptimizerLoad& load : prepared->loads) load.take_options();
  return std::move(prepared->loaded);
}

}  // namespace zerosched::detail
