#include "io/saved_state.h"

#include "io/piece_name.h"
#include "io/tensor_name.h"

#include <algorithm>
#include <stdexcept>

namespace zerosched::detail {

SavedState::SavedState(const Manifest& manifest, const std::string& dir) : manifest_(manifest), dir_(dir) {
  std::set<std::string> parameters;
  for (const ParameterSpec& parameter : manifest.parameters) parameters.insert(parameter.name);
  for (const auto& [file_name, file] : manifest.files) {
    if (file_name == kModuleFileName) continue;
    for (const auto& [tensor, checksum] : file.checksums) {
      if (tensor_name::has_prefix(tensor, tensor_name::kLocal)) continue;
      const auto name = parse_piece_name(tensor);
      if (!name || parameters.count(name->parameter) == 0) {
        throw std::runtime_error(
            dir_ + '/' + file_name + ": tensor '" + tensor + "' is of no parameter of this checkpoint");
      }
      tensors_.insert(name->state);
      pieces_[{name->state, name->parameter}].push_back(
          {name->begin, name->end, &file_name, tensor, &checksum});
    }
  }
  for (auto& named : pieces_) {
    std::sort(named.second.begin(), named.second.end(),
        [](const SavedPiece& a, const SavedPiece& b) { return a.begin < b.begin; });
  }
  check_coverage();
}

void SavedState::check_coverage() const {
  for (const std::string& tensor : tensors_) {
    for (const ParameterSpec& parameter : manifest_.parameters) {
      const auto found = pieces_.find({tensor, parameter.name});
      const std::vector<SavedPiece> none;
      const std::vector<SavedPiece>& pieces = found == pieces_.end() ? none : found->second;
      int64_t covered = 0;
      size_t in_order = 0;
      for (; in_order < pieces.size() && pieces[in_order].begin == covered; ++in_order) {
        covered = pieces[in_order].end;
      }
      if (in_order < pieces.size() || covered != parameter.numel()) {
        throw std::runtime_error(dir_ + ": tensor " + tensor + " of parameter '" + parameter.name +
                                 "' is not there in full: after element " + std::to_string(covered) + " of " +
                                 std::to_string(parameter.numel()) + " something is missing or twice");
      }
    }
  }
}

void StateReader::want(
    const std::string& tensor, const std::string& parameter, int64_t begin, const at::Tensor& to) {
  const int64_t end = begin + to.numel();
  if (begin == end) return;
  const auto& pieces = saved_.pieces_.at({tensor, parameter});
  // The last piece that begins at or before the first element wanted.
  auto piece = std::upper_bound(pieces.begin(), pieces.end(), begin,
                   [](int64_t element, const SavedState::SavedPiece& each) { return element < each.begin; }) -
               1;
  for (; piece != pieces.end() && piece->begin < end; ++piece) {
    const int64_t from = std::max(piece->begin, begin);
    const int64_t until = std::min(piece->end, end);
    parts_[*piece->file].push_back({&*piece, from - piece->begin, to.narrow(0, from - begin, until - from)});
  }
}

void StateReader::verify() const {
  for (const auto& [file_name, parts] : parts_) {
    const TensorFile file(saved_.dir_ + '/' + file_name);
    file.check_byte_count(saved_.manifest_.files.at(file_name).byte_count);
    std::set<const SavedState::SavedPiece*> verified;
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

void StateReader::read(Executor& executor) const {
  for (const auto& [file_name, parts] : parts_) {
    const TensorFile file(saved_.dir_ + '/' + file_name);
    for (const Part& part : parts) file.read(part.piece->tensor, part.begin, part.to, executor);
  }
}

}  // namespace zerosched::detail
