#include "io/saved_state.h"

#include "io/piece_name.h"
#include "io/tensor_name.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <unordered_map>
#include <utility>

namespace zerosched::detail {

SavedState::SavedState(const Manifest& manifest, const Engine& engine, std::string dir)
    : engine_(engine), dir_(std::move(dir)) {
  const auto& tensors = engine.algorithm().state();
  const Model& model = engine.model();
  std::unordered_map<std::string, size_t> state_index, parameter_index;
  for (size_t t = 0; t < tensors.size(); ++t) state_index[tensors[t].name] = t;
  for (size_t p = 0; p < model.names.size(); ++p) parameter_index[model.names[p]] = p;
  pieces_.assign(tensors.size(), std::vector<std::vector<SavedPiece>>(model.names.size()));
  for (const auto& [file_name, file] : manifest.files) {
    if (file_name == kModuleFileName) continue;
    file_bytes_[file_name] = file.byte_count;
    for (const auto& [tensor, checksum] : file.checksums) {
      if (tensor_name::has_prefix(tensor, tensor_name::kLocal)) continue;
      const auto name = parse_piece_name(tensor);
      if (!name || state_index.count(name->state) == 0 || parameter_index.count(name->parameter) == 0) {
        throw std::runtime_error(
            dir_ + '/' + file_name + ": tensor '" + tensor + "' is of no parameter of this optimizer");
      }
      pieces_[state_index[name->state]][parameter_index[name->parameter]].push_back(
          {name->begin, name->end, &file_name, tensor, &checksum});
    }
  }
  for (auto& of_tensor : pieces_) {
    for (auto& of_parameter : of_tensor) {
      std::sort(of_parameter.begin(), of_parameter.end(),
          [](const SavedPiece& a, const SavedPiece& b) { return a.begin < b.begin; });
    }
  }
  check_coverage();
}

void SavedState::check_coverage() const {
  const auto& tensors = engine_.algorithm().state();
  const Model& model = engine_.model();
  for (size_t t = 0; t < tensors.size(); ++t) {
    for (size_t p = 0; p < model.names.size(); ++p) {
      const auto& pieces = pieces_[t][p];
      int64_t covered = 0;
      size_t in_order = 0;
      for (; in_order < pieces.size() && pieces[in_order].begin == covered; ++in_order) {
        covered = pieces[in_order].end;
      }
      if (in_order < pieces.size() || covered != model.specs[p].numel()) {
        throw std::runtime_error(dir_ + ": tensor " + tensors[t].name + " of parameter '" + model.names[p] +
                                 "' is not there in full: after element " + std::to_string(covered) + " of " +
                                 std::to_string(model.specs[p].numel()) + " something is missing or twice");
      }
    }
  }
}

std::map<std::string, std::vector<SavedState::Part>> SavedState::parts_by_file() const {
  std::map<std::string, std::vector<Part>> parts;
  const Layout& layout = engine_.layout();
  const int64_t rank = engine_.communicator()->rank();
  for (size_t b = 0; b < layout.buckets.size(); ++b) {
    const Bucket& bucket = layout.buckets[b];
    for (size_t t = 0; t < pieces_.size(); ++t) {
      const at::Tensor& shard = engine_.state(static_cast<int64_t>(b), t);
      for (const Piece& piece : bucket.pieces) {
        if (piece.slice != rank) continue;
        const auto& saved =
            pieces_[t][static_cast<size_t>(bucket.slots[static_cast<size_t>(piece.slot)].parameter)];
        const int64_t wanted_end = piece.slot_begin + piece.numel;
        // The last piece that begins at or before the first element wanted.
        auto found = std::upper_bound(saved.begin(), saved.end(), piece.slot_begin,
                         [](int64_t begin, const SavedPiece& s) { return begin < s.begin; }) -
                     1;
        for (; found != saved.end() && found->begin < wanted_end; ++found) {
          const int64_t begin = std::max(found->begin, piece.slot_begin);
          const int64_t end = std::min(found->end, wanted_end);
          parts[*found->file].push_back({&*found, begin - found->begin,
              shard.narrow(0, piece.slice_begin + begin - piece.slot_begin, end - begin)});
        }
      }
    }
  }
  return parts;
}

void SavedState::verify() const {
  for (const auto& [file_name, parts] : parts_by_file()) {
    const TensorFile file(dir_ + '/' + file_name);
    file.check_byte_count(file_bytes_.at(file_name));
    std::set<const SavedPiece*> verified;
    for (const Part& part : parts) {
      if (!verified.insert(part.piece).second) continue;
      const SafetensorsEntry& entry = file.entry(part.piece->tensor);
      if (entry.dtype != part.to.scalar_type() ||
          entry.shape != std::vector<int64_t>{part.piece->end - part.piece->begin}) {
        throw std::runtime_error(file.path() + ": tensor '" + part.piece->tensor + "' is " +
                                 safetensors_name(entry.dtype) + " and not " +
                                 safetensors_name(part.to.scalar_type()) +
                                 ", or not of the size that its name says");
      }
      file.verify(part.piece->tensor, *part.piece->checksum);
    }
  }
}

void SavedState::read_into_shards() const {
  for (const auto& [file_name, parts] : parts_by_file()) {
    const TensorFile file(dir_ + '/' + file_name);
    for (const Part& part : parts) file.read(part.piece->tensor, part.begin, part.to, engine_.executor());
  }
}

}  // namespace zerosched::detail
