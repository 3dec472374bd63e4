#include "comm/agree.h"
#include "engine/equal_on_ranks.h"
#include "io/checkpoint.h"
#include "io/checkpoint_folder.h"
#include "io/file.h"
#include "io/manifest.h"
#include "io/piece_name.h"
#include "io/tensor_file.h"
#include "io/tensor_name.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// A checkpoint is saved in four acts, and the ranks agree after each that it went well on all:
//
//   check      arguments, and that the optimizer is between two steps
//   start      rank 0 makes the partial folder
//   write      every rank its shard, rank 0 also what is not sharded; each file is synced
//   publish    rank 0 writes the manifest, renames the folder and moves `latest`
namespace zerosched::detail {

namespace {

// A piece is read as a whole to verify its checksum, even by a rank that needs a part of it only.
constexpr int64_t kMaxPieceNumel = int64_t{1} << 24;

NamedTensors pieces_of(const Engine& engine, int64_t rank) {
  NamedTensors pieces;
  const Layout& layout = engine.layout();
  const auto& tensors = engine.algorithm().state();
  for (size_t b = 0; b < layout.buckets.size(); ++b) {
    const Bucket& bucket = layout.buckets[b];
    for (size_t t = 0; t < tensors.size(); ++t) {
      const at::Tensor& shard = engine.state(static_cast<int64_t>(b), t);
      for (const Piece& piece : bucket.pieces) {
        if (piece.slice != rank) continue;
        const auto parameter = static_cast<size_t>(bucket.slots[static_cast<size_t>(piece.slot)].parameter);
        for (int64_t done = 0; done < piece.numel; done += kMaxPieceNumel) {
          const int64_t numel = std::min(kMaxPieceNumel, piece.numel - done);
          const int64_t begin = piece.slot_begin + done;
          pieces.emplace_back(
              to_text({tensors[t].name, begin, begin + numel, engine.model().names[parameter]}),
              shard.narrow(0, piece.slice_begin + done, numel));
        }
      }
    }
  }
  return pieces;
}

NamedTensors unsharded(const Engine& engine, const CheckpointData& shared) {
  NamedTensors tensors = tensor_name::unsharded(engine.model());
  for (const auto& [name, tensor] : shared.tensors) tensors.emplace_back(tensor_name::kShared + name, tensor);
  return tensors;
}

void check_data(const CheckpointData& data) {
  check_json(data.json);
  for (const auto& [name, tensor] : data.tensors) {
    TORCH_CHECK(tensor.defined(), "the tensor that was added as '", name, "' is undefined.");
    safetensors_name(tensor.scalar_type());
  }
}

Manifest describe(const Engine& engine, const GroupOptions& options, int64_t world_size) {
  Manifest manifest;
  manifest.library_version = ZEROSCHED_VERSION;
  manifest.created = std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::system_clock::now().time_since_epoch())
                         .count();
  manifest.world_size = world_size;
  manifest.optimizer = engine.algorithm().name();
  for (size_t g = 0; g < options.size(); ++g) {
    manifest.groups.push_back({engine.algorithm().values(*options[g]), engine.groups()[g]});
  }
  manifest.parameters = engine.model().specs;
  for (const TiedName& tied : engine.model().tied) manifest.tied[tied.name] = tied.first_name;
  return manifest;
}

// A rank on another host may have written to a folder of the same name that only it sees.
void check_files_are_here(const CheckpointFolder& folder, const Manifest& manifest) {
  for (const auto& [name, file] : manifest.files) {
    std::error_code error;
    const uintmax_t bytes = std::filesystem::file_size(folder.file(name), error);
    TORCH_CHECK(!error && bytes == file.byte_count, folder.file(name), ": a rank has written ",
        file.byte_count, " bytes to it, but rank 0 sees ",
        error ? "no such file" : std::to_string(bytes) + " bytes",
        ". The folder must be on a file system that all ranks share.");
  }
}

}  // namespace

void save_checkpoint(Engine& engine, const GroupOptions& options, const std::string& dir,
    const CheckpointExtra& extra, const CheckpointOptions& how) {
  engine.check();
  Communicator& communicator = *engine.communicator();
  const int rank = communicator.rank();
  check_same_on_all_ranks(
      communicator, {"save_checkpoint(\"" + dir + "\") keeping the last " + std::to_string(how.keep_last())});
  std::optional<CheckpointFolder> folder;
  agree_on(communicator, [&] {
    folder.emplace(dir);
    TORCH_CHECK(how.keep_last() >= 0, "CheckpointOptions::keep_last must not be negative, got ",
        how.keep_last(), ".");
    const std::string why_not = engine.why_not_savable();
    TORCH_CHECK(why_not.empty(), "save_checkpoint: ", why_not);
    if (rank == 0) check_data(extra.shared);
    check_data(extra.local);
  });
  engine.check_in_step("save_checkpoint: ");

  engine.settle_module();
  try {
    agree_on(communicator, [&] {
      if (rank == 0) folder->start();
    });

    std::string own_report;
    agree_on(communicator, [&] {
      RankReport report;
      report.finite = engine.is_finite();
      report.local_json = extra.local.json;
      NamedTensors tensors = pieces_of(engine, rank);
      for (const auto& [name, tensor] : extra.local.tensors)
        tensors.emplace_back(tensor_name::kLocal + name, tensor);
      const std::string name = rank_file_name(rank);
      const auto use = engine.enter();
      report.files[name] = write_tensors(folder->file(name), tensors, engine.executor());
      if (rank == 0) {
        report.files[kModuleFileName] =
            write_tensors(folder->file(kModuleFileName), unsharded(engine, extra.shared), engine.executor());
      }
      own_report = to_json(report);
    });

    // One at a time: all together are as long as the manifest, which only rank 0 needs.
    std::vector<std::string> reports;
    for (int r = 0; r < communicator.size(); ++r) {
      std::string report = broadcast_bytes(communicator, own_report, r, {"checkpoint report"});
      if (rank == 0) reports.push_back(std::move(report));
    }
    agree_on(communicator, [&] {
      if (rank != 0) return;
      Manifest manifest = describe(engine, options, communicator.size());
      manifest.shared_json = extra.shared.json;
      for (const std::string& text : reports) {
        RankReport report = parse_rank_report(text);
        manifest.finite = manifest.finite && report.finite;
        manifest.files.merge(report.files);
        manifest.local_json.push_back(std::move(report.local_json));
      }
      check_files_are_here(*folder, manifest);
      write_text(folder->file(kManifestName), to_json(manifest));
      folder->publish();
    });
  } catch (...) {
    if (rank == 0) folder->discard();
    throw;
  }
  agree_on(communicator, [&] {
    if (rank == 0 && how.keep_last() > 0) folder->keep_last(how.keep_last());
  });
}

}  // namespace zerosched::detail
