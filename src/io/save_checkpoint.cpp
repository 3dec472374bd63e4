#include "base/check.h"
#include "comm/agree.h"
#include "engine/equal_on_ranks.h"
#include "io/checkpoint.h"
#include "io/checkpoint_folder.h"
#include "io/checkpoint_names.h"
#include "io/file.h"
#include "io/json.h"
#include "io/manifest.h"
#include "io/piece_name.h"
#include "io/tensor_file.h"
#include "io/tensor_name.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// A checkpoint is saved in four acts, and the ranks agree after each that it went well on all; README.md has what happens
// to files and folders:
//
//   check      arguments, and that every optimizer is between two steps
//   start      rank 0 makes the partial folder
//   write      every rank its shards, rank 0 also what is not sharded
//   publish    rank 0 writes the manifests, renames the folder and moves `latest`
namespace zerosched::detail {

namespace {

// A piece is read as a whole to verify its checksum, even by a rank that needs a part of it only.
constexpr int64_t kMaxPieceNumel = int64_t{1} << 24;

NamedTensors pieces_of(const OptimizerState& state, int64_t rank) {
  NamedTensors pieces;
  const Layout& layout = state.layout();
  const auto& tensors = state.algorithm().state();
  for (size_t b = 0; b < layout.buckets.size(); ++b) {
    const Bucket& bucket = layout.buckets[b];
    for (size_t t = 0; t < tensors.size(); ++t) {
      const at::Tensor& shard = state.shards()[b][t];
      for (const Piece& piece : bucket.pieces) {
        if (piece.slice != rank) continue;
        const auto parameter = static_cast<size_t>(bucket.slot_of(piece).parameter);
        for (int64_t done = 0; done < piece.numel; done += kMaxPieceNumel) {
          const int64_t numel = std::min(kMaxPieceNumel, piece.numel - done);
          const int64_t begin = piece.slot_begin + done;
          pieces.emplace_back(
              to_text({tensors[t].name, begin, begin + numel, state.model().names[parameter]}),
              shard.narrow(0, piece.slice_begin + done, numel));
        }
      }
    }
  }
  return pieces;
}

NamedTensors unsharded(const OptimizerState& state, const CheckpointData& shared) {
  NamedTensors tensors = tensor_name::unsharded(state.model());
  for (const auto& [name, tensor] : shared.tensors) tensors.emplace_back(tensor_name::kShared + name, tensor);
  return tensors;
}

void check_data(const CheckpointData& data) {
  check_json(data.json);
  for (const auto& [name, tensor] : data.tensors) {
    ZEROSCHED_CHECK(tensor.defined(), "the tensor that was added as '", name, "' is undefined.");
    ZEROSCHED_CHECK(is_utf8(name), "the tensor that was added as '", name,
        "': its name is not UTF-8, as names in a safetensors file are.");
    safetensors_name(tensor.scalar_type());
  }
}

// Of what is saved, before the manifests are there.
CheckpointSummary summarize(const std::vector<CheckpointedOptimizer>& optimizers) {
  CheckpointSummary summary;
  summary.library_version = ZEROSCHED_VERSION;
  summary.job = JobIdentity::own();
  summary.is_of_several = optimizers.size() > 1;
  for (const CheckpointedOptimizer& each : optimizers) {
    summary.series.push_back(each.optimizer->state().series().id());
    summary.optimizers.emplace_back(each.optimizer->state().algorithm().name());
  }
  return summary;
}

// Without what ranks have written.
Manifest describe(
    const CheckpointedOptimizer& optimizer, const CheckpointSummary& whole, int64_t world_size) {
  OptimizerState& state = optimizer.optimizer->state();
  Manifest manifest;
  manifest.library_version = whole.library_version;
  manifest.created = whole.created;
  manifest.job = whole.job;
  manifest.series = state.series().id();
  manifest.world_size = world_size;
  manifest.optimizer = state.algorithm().name();
  for (size_t g = 0; g < optimizer.options.size(); ++g) {
    manifest.groups.push_back({state.algorithm().values(*optimizer.options[g]), state.groups()[g]});
  }
  manifest.parameters = state.model().specs;
  for (const TiedName& tied : state.model().tied) manifest.tied[tied.name] = tied.first_name;
  return manifest;
}

// A rank on another host may have written to a folder of the same name that only it sees.
void check_files_are_here(const std::string& folder, const Manifest& manifest) {
  for (const auto& [name, file] : manifest.files) {
    std::error_code error;
    const std::string path = folder + name;
    const uintmax_t bytes = std::filesystem::file_size(path, error);
    const bool is_here = has_found(path, "cannot be examined", error);
    ZEROSCHED_CHECK(is_here && bytes == file.byte_count, path, ": a rank has written ", file.byte_count,
        " bytes to it, but rank 0 sees ", is_here ? std::to_string(bytes) + " bytes" : "no such file",
        ". The folder must be on a file system that all ranks share.");
  }
}

// Rank 0's share is what is not cut into shards, too. `folder` ends in a slash.
RankReport write_own(
    const OptimizerState& state, int rank, const std::string& folder, const CheckpointExtra& extra) {
  RankReport report;
  report.finite = state.is_finite();
  report.local_json = extra.local.json;
  NamedTensors tensors = pieces_of(state, rank);
  for (const auto& [name, tensor] : extra.local.tensors)
    tensors.emplace_back(tensor_name::kLocal + name, tensor);
  const std::string name = rank_file_name(rank);
  report.files[name] = write_tensors(folder + name, tensors, state.executor());
  if (rank == 0) {
    report.files[kModuleFileName] =
        write_tensors(folder + kModuleFileName, unsharded(state, extra.shared), state.executor());
  }
  return report;
}

// Reports of all ranks, on rank 0, as texts, since what fails on one rank is agreed on before and after. One at a time: all
// together are as long as the manifest, which only rank 0 needs.
std::vector<std::string> gather(Communicator& communicator, const std::string& own) {
  std::vector<std::string> reports;
  for (int r = 0; r < communicator.size(); ++r) {
    std::string report = broadcast_bytes(communicator, own, r, {"checkpoint report"});
    if (communicator.rank() == 0) reports.push_back(std::move(report));
  }
  return reports;
}

// Returns whether the state is finite.
bool write_manifest(Manifest manifest, const std::vector<std::string>& reports, const CheckpointExtra& extra,
    const std::string& folder) {
  manifest.shared_json = extra.shared.json;
  for (const std::string& text : reports) {
    RankReport report = parse_rank_report(text);
    manifest.finite = manifest.finite && report.finite;
    manifest.files.merge(report.files);
    manifest.local_json.push_back(std::move(report.local_json));
  }
  check_files_are_here(folder, manifest);
  write_text(folder + kManifestName, to_json(manifest));
  return manifest.finite;
}

void discard(std::optional<CheckpointFolder>& folder) noexcept {
  if (folder) folder->discard();
  folder.reset();
}

void check_arguments(const std::vector<CheckpointedOptimizer>& optimizers, const CheckpointExtra& extra,
    const CheckpointOptions& how) {
  ZEROSCHED_CHECK(
      how.keep_last() >= 0, "CheckpointOptions::keep_last must not be negative, got ", how.keep_last(), ".");
  const Communicator& first = *optimizers.front().optimizer->communicator();
  for (const CheckpointedOptimizer& each : optimizers) {
    const Communicator& own = *each.optimizer->communicator();
    ZEROSCHED_CHECK(own.size() == first.size() && own.rank() == first.rank(),
        "save_checkpoint: optimizers of one checkpoint must be of the same ranks; this is rank ",
        first.rank(), " of ", first.size(), " in one and rank ", own.rank(), " of ", own.size(),
        " in another.");
    const std::string why_not = each.optimizer->why_not_savable();
    ZEROSCHED_CHECK(why_not.empty(), "save_checkpoint: ", why_not);
  }
  if (first.rank() == 0) check_data(extra.shared);
  check_data(extra.local);
}

}  // namespace

void save_checkpoint(const std::vector<CheckpointedOptimizer>& optimizers, const std::string& dir,
    const CheckpointExtra& extra, const CheckpointOptions& how) {
  for (const CheckpointedOptimizer& each : optimizers) each.optimizer->check();
  Communicator& communicator = *optimizers.front().optimizer->communicator();
  const int rank = communicator.rank();
  check_same_on_all_ranks(
      communicator, {"save_checkpoint(\"" + dir + "\") keeping the last " + std::to_string(how.keep_last())});
  std::optional<CheckpointFolder> folder;
  agree_on(communicator, [&] {
    folder.emplace(dir);
    check_arguments(optimizers, extra, how);
  });
  for (const CheckpointedOptimizer& each : optimizers) each.optimizer->check_in_step("save_checkpoint: ");
  for (const CheckpointedOptimizer& each : optimizers) each.optimizer->settle_module();

  const bool several = optimizers.size() > 1;
  // "run/.step_01000.partial/", or of several "run/.step_01000.partial/optimizer_0/"
  const auto folder_of_part = [&](size_t part) {
    return several ? folder->file(part_name(part)) + '/' : folder->file("");
  };
  const CheckpointExtra nothing;
  const auto extra_of_part = [&](size_t part) -> const CheckpointExtra& {
    return part == 0 ? extra : nothing;
  };
  const auto warn = [](const std::string& what) { TORCH_WARN("zerosched: ", what); };
  try {
    CheckpointSummary summary;
    agree_on(communicator, [&] {
      if (rank != 0) return;
      summary = summarize(optimizers);
      folder->start(summary, several ? optimizers.size() : 0, warn);
      summary.created = folder->created();
    });

    std::vector<std::string> own_reports;
    agree_on(communicator, [&] {
      for (size_t i = 0; i < optimizers.size(); ++i) {
        const auto use = optimizers[i].optimizer->enter();
        own_reports.push_back(
            to_json(write_own(optimizers[i].optimizer->state(), rank, folder_of_part(i), extra_of_part(i))));
      }
    });
    std::vector<std::vector<std::string>> reports;
    for (const std::string& own : own_reports) reports.push_back(gather(communicator, own));
    agree_on(communicator, [&] {
      if (rank != 0) return;
      for (size_t i = 0; i < optimizers.size(); ++i) {
        const bool finite = write_manifest(describe(optimizers[i], summary, communicator.size()), reports[i],
            extra_of_part(i), folder_of_part(i));
        summary.finite = summary.finite && finite;
      }
      if (several) write_text(folder->file(kManifestName), to_json(summary));
      folder->publish(warn);
      if (how.keep_last() > 0) folder->keep_last(how.keep_last(), warn);
      folder.reset();
    });
  } catch (const AgreedError&) {
    if (rank == 0) discard(folder);
    communicator.barrier({"what is left of a failed save is removed"})
        ->wait();  // for who looks at the folder next
    throw;
  } catch (...) {
    if (rank == 0) discard(folder);
    throw;
  }
}

}  // namespace zerosched::detail
